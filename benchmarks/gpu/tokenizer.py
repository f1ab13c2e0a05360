"""A tokenizer of Qwen3's size made on the spot: byte-level BPE, fillers for the ids that Qwen's merges have, its special tokens.

Text is cut into bytes, so a prompt has more ids than with Qwen's own; sampled ids mostly decode to fillers.
"""

from poweropd_lite.tiny.build import CHAT_TEMPLATE, QWEN_PATTERN

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
SPECIAL += [f"<|spare_{i}|>" for i in range(21)]  # Qwen3 has 26, the last of its ids


def make_tokenizer(size: int):
    """Returns a tokenizer of `size` ids, the last 26 special ones; of 151,669, <|im_end|> is 151,645, as Qwen3's."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import Qwen2Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"filler{i}" for i in range(size - len(SPECIAL) - len(letters))]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return Qwen2Tokenizer(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        bos_token=None,
        model_max_length=40_960,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
