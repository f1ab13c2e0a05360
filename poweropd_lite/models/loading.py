"""What student and teacher have in common: finding a model, its tokenizer, its body and its head.

A causal LM is used as two parts: the body, which turns ids into final hidden states, and the head, whose logits `logprobs`
makes a few rows at a time. A model whose logits are made in any other way than a Head's is refused.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.explained import explained, not_downloaded
from poweropd_lite.kernels.products import Head, float_logits
from poweropd_lite.models.logits import logit_form
from poweropd_lite.models.whole import OWN_NAMES, class_of, language_model, no_language_model, say_strays, unreported

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Sizes that every causal LM's config has.
_MOST = {"vocab_size": 10**7, "hidden_size": 10**6, "num_hidden_layers": 10**4, "num_attention_heads": 10**5}
_TOLD = tuple(f"transformers.models.{family}.modeling_{family}" for family in ("qwen2", "qwen3"))  # take masks by name


def model_path(name: str, role: str) -> str:
    """Returns what transformers loads for `name` in the role "student" or "teacher".

    "bundled" is that role's model inside the package, bundled-student and bundled-teacher are these in any role.
    """
    shipped = {
        BUNDLED: role.removesuffix("-tokenizer"),
        f"{BUNDLED}-student": "student",
        f"{BUNDLED}-teacher": "teacher",
    }
    return str(Path(__file__).parent.parent / "tiny" / shipped[name]) if name in shipped else name


def is_missing_folder(name: str) -> bool:
    """Whether a name is a path to nothing: no hub id has such a form, or runs lie where it points."""
    path = Path(name)
    beside = len(path.parts) == 2 and any(path.parent.glob("*/config.yaml"))
    typed = beside or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")
    return typed and not os.path.exists(name)  # which is no error for a name too long


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes a tokenizer with its chat template; raises UserError if the disk won't take it."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library has no kinds of its own for a full disk
        raise UserError(f"can't write the tokenizer into {folder}: {error}; what was there before stands") from None


def load_tokenizer(name: str, role: str, remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Returns the tokenizer of a model; raises UserError if there is none."""
    from transformers import AutoTokenizer

    with explained_load(name, role, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(model_path(name, role), trust_remote_code=remote_code)
        if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):  # transformers makes an empty one
            raise ValueError("its tokenizer's files (tokenizer.json, or those of its kind) are not there")
    return tokenizer


def load_model_config(name: str, role: str, remote_code: bool = False) -> tuple["PretrainedConfig", list[int]]:
    """Returns a model's config and the stop ids of its generation config; raises UserError if there is no model.

    Of a checkpoint of text and images it is the config of its language model.
    """
    from transformers import GenerationConfig

    path = model_path(name, role)
    model_config = language_model(load_whole_config(name, role, remote_code), remote_code)
    try:
        stops = GenerationConfig.from_pretrained(path).eos_token_id
    except Exception as error:  # a list or a text in it is no OSError
        if (Path(path) / "generation_config.json").exists() or not isinstance(error, OSError):
            raise UserError(
                f"{path}/generation_config.json can't be read: {not_downloaded(Path(path)) or error}"
            ) from None
        stops = getattr(model_config, "eos_token_id", None)  # a model need not have one; its config may name the stop
    stops = [] if stops is None else [stops] if isinstance(stops, int) else stops
    if not isinstance(stops, list) or not all(isinstance(i, int) for i in stops):
        raise UserError(f"eos_token_id of the {role} '{name}' is {stops!r}; it must be an id or a list of ids")
    return model_config, stops


def load_whole_config(name: str, role: str, remote_code: bool = False) -> "PretrainedConfig":
    """Returns a model's config as its file has it; raises UserError if there is no model."""
    from transformers import AutoConfig

    with explained_load(name, role, "model config"):
        model_config = AutoConfig.from_pretrained(model_path(name, role), trust_remote_code=remote_code)
        _check_sizes(model_config.get_text_config())
    return model_config


def taken_from(name: str, role: str, remote_code: bool = False) -> str | None:
    """Returns the class of a checkpoint of which the language model alone is taken, or None; raises UserError if there is no model."""
    whole = load_whole_config(name, role, remote_code)
    return None if language_model(whole, remote_code) is whole else class_of(whole)


def _check_sizes(text_config: "PretrainedConfig") -> None:
    """Raises ValueError for sizes that no causal LM has, before anything is as large as they say."""
    for size, most in _MOST.items():
        value = getattr(text_config, size, None)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"it has {size} {value!r}, and a causal language model has 1 to {most:,}")


def load_causal_lm(
    name: str, role: str, dtype: torch.dtype, remote_code: bool = False, **options: Any
) -> "PreTrainedModel":
    """Returns the model's weights in `dtype` with every dropout off; raises UserError if it is not a causal LM.

    Of a checkpoint of text and images its language model alone is read.
    """
    from transformers import AutoModelForCausalLM

    whole = load_whole_config(name, role, remote_code)
    own = language_model(whole, remote_code)
    taken: dict[str, Any] = {"config": own, "key_mapping": dict(OWN_NAMES)} if own is not whole else {}
    with explained_load(name, role, "causal language model"):
        if fault := no_language_model(whole):
            raise UserError(f"no causal language model for the {role} in '{name}': {fault}")
        with unreported() if taken else contextlib.nullcontext():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                model_path(name, role),
                dtype=dtype,
                attn_implementation="sdpa",
                trust_remote_code=remote_code,
                output_loading_info=True,
                **taken,
                **options,
            )
        model, info = loaded
        if lost := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
            raise UserError(
                f"the weights of the {role} '{name}' lack {len(lost)} tensors of its config ({lost[0]}, ...), which would be random "
                "numbers; is the download whole?"
            )
        if taken:
            say_strays(model, info["unexpected_keys"])
            model._weight_conversions = None  # else its saved names would be OWN_NAMES turned back, which can't be
    if (attention := attention_for(model.config.get_text_config())) != "sdpa":
        model.set_attn_implementation(attention)
    quiet_dropout(model)
    return model


def attention_for(text_config: "PretrainedConfig") -> str:
    """Returns the attention that computes what a config says: transformers' sdpa leaves Gemma 2's cap of scores out, silently."""
    return "eager" if getattr(text_config, "attn_logit_softcapping", None) else "sdpa"


def quiet_dropout(model: "PreTrainedModel") -> None:
    """Turns every dropout off."""
    holders: list[Any] = [model.config, model.config.get_text_config()]  # Falcon reads its config at every forward
    for module in model.modules():
        holders.append(module)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for holder in holders:  # OPT and others keep a number: dropout, attn_pdrop, layerdrop
        for key, value in list(vars(holder).items()):
            if "drop" in key and isinstance(value, float):
                setattr(holder, key, 0.0)


def nf4(dtype: torch.dtype) -> Any:
    """Returns transformers' setting for NF4 with double quantisation, computed in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def stay_unpacked(model: "PreTrainedModel | PeftModel") -> None:
    """Keeps bitsandbytes from repacking 4-bit weights at the first forward, as it does on some CPUs.

    Repacked, they have bfloat16 scales and arithmetic (other numbers than elsewhere), are slower at small sizes, and give
    wrong gradients to what is trained through them.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_blocks(model: "PreTrainedModel | PeftModel", name: str) -> None:
    """Raises UserError on a CPU where rows of 4-bit matrices are no whole blocks: bitsandbytes 0.50 unpacks other numbers there."""
    module: Any
    for path, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", getattr(module, "quant_state", None))
        if state is not None and model.device.type == "cpu" and state.shape[-1] % state.blocksize:
            raise UserError(
                f"{path} of {name} has rows of {state.shape[-1]} numbers, no multiple of {state.blocksize}, which bitsandbytes "
                "unpacks wrongly from 4 bits on a CPU; type 16 bits for it"
            )


def unwrapped(model: Any) -> Any:
    """Returns the PreTrainedModel of a PeftModel, or of one itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def model_body(model: "PreTrainedModel | PeftModel") -> Any:
    """Returns the module of a causal LM that makes the final hidden states; raises UserError for one without (Llama 4's)."""
    base = unwrapped(model)
    body = base.get_decoder()
    if body is base:
        found = (
            f"{type(base).__name__} has no part of its own that makes hidden states, from which logits are made here"
        )
        raise UserError(f"{found}; use a model such as Qwen3 or Llama")
    return body


def head_of(model: "PreTrainedModel | PeftModel") -> Head:
    """Returns the head; the trained copy, where PEFT keeps one and it is not switched off."""
    base = unwrapped(model)
    module = _in_use(base.get_output_embeddings())
    return Head(module.weight, getattr(module, "bias", None), *logit_form(base.config))


def weight_of(module: Any) -> Tensor:
    """Returns a module's weight; of one that PEFT trains whole (`modules_to_save`) the copy that is in use."""
    return _in_use(module).weight


def _in_use(module: Any) -> Any:
    whole = hasattr(module, "modules_to_save") and not module.disable_adapters
    return module.modules_to_save[module.active_adapters[0]] if whole else module


def final_hidden(model: "PreTrainedModel | PeftModel", ids: Tensor) -> Tensor:
    """Returns the final hidden states [B, T, D] of right-padded ids [B, T].

    No mask is needed: under a causal mask no token sees the padding that follows it. Where a model can be told so, it is: else
    transformers asks the device whether sequences are packed, which waits for all that was begun before.
    """
    body = model_body(model)
    # (Unsloth has put another forward there.)
    told = type(body).forward.__module__ in _TOLD and body.config._attn_implementation == "sdpa"
    told = told and set(getattr(body.config, "layer_types", ())) == {"full_attention"}
    mask = {"full_attention": None} if told else None
    return body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def check_finite(model: "PreTrainedModel | PeftModel", name: str) -> None:
    """Raises UserError where weights, or what they give on a few ids, are not finite numbers."""
    broken = [
        key
        for key, p in model.named_parameters()
        if p.is_floating_point() and p.element_size() > 1 and not p.isfinite().all()
    ]
    ids = torch.arange(8, device=model.device)[None] % len(head_of(model).weight)
    with torch.no_grad():
        sound = not broken and bool(final_hidden(model, ids).isfinite().all())
    if not sound:
        which = f"{len(broken)} weights of {name}, for one {broken[0]}, are" if broken else f"what {name} computes is"
        raise UserError(
            f"{which} not finite numbers: damaged, or made by a training that went wrong; take it from elsewhere"
        )


def check_head(model: "PreTrainedModel | PeftModel", name: str) -> None:
    """Raises UserError unless the model's logits are those of `head_of`, on a few ids: any other way to make them would make
    every log-prob here silently wrong.
    """
    base, head = unwrapped(model), head_of(model)
    ids = torch.arange(8, device=base.device)[None] % len(head.weight)
    with torch.no_grad():
        logits = base(input_ids=ids, use_cache=False).logits[0].float()
        logits -= logits.amax(-1, keepdim=True)  # as float_logits
        ours = float_logits(final_hidden(model, ids)[0], head)
    gap = (logits - ours).abs().max().item()
    # bfloat16 logits are rounded to 8 bits.
    limit = (1e-3 if base.dtype == torch.float32 else 0.03) * max(1.0, logits.abs().max().item())
    if not logits.isfinite().all():
        raise UserError(f"the weights of {name} give logits that are not finite numbers; is the download whole?")
    if gap > limit:
        raise UserError(
            f"the logits of {name} are not those of its final hidden states and its head (they differ by up to {gap:.3g}): it "
            "makes them in a way of its own, which the chunked log-probs don't know; use a model such as Qwen3 or Llama"
        )


@contextlib.contextmanager
def explained_load(name: str, role: str, what: str) -> Iterator[None]:
    """Turns what the libraries raise for a model that can't be loaded into a UserError."""
    mend = f"a hub id, a folder that save_pretrained wrote, or '{BUNDLED}'"
    mend = f"type {mend} in its place" if role == "model" else f"type --{role} with {mend}"
    side = role.removesuffix("-tokenizer")  # a served teacher's tokenizer and config are read by that flag
    found = f"no {what} for the {side} at '{name}'"
    if is_missing_folder(model_path(name, role)):
        raise UserError(f"{found}: there is no such folder\n{mend}")
    try:
        with explained(found, model_path(name, role), mend):
            yield
    except UserError as error:
        if "trust_remote_code=True" in str(error.__cause__):
            found += ": it needs Python code that comes with it, which is not run unasked"
            mend = "type --trust-remote-code (in Python trust_remote_code=True) if you trust its source"
            raise UserError(f"{found}; {mend}") from error
        folder = Path(name)
        has = os.path.exists  # which is no error for a name too long
        run = next(
            (f for f in (folder, folder.parent) if has(f / "config.yaml") and os.path.isdir(f / "adapter")), None
        )
        if role == "model" or (run is None and not has(folder / "adapter_config.json")):
            raise
        beside = (
            " (to train on from it: --adapter with its folder, and --student with its base)"
            if role == "student"
            else ""
        )
        raise UserError(
            f"{name} is {'a run' if run == folder else 'an adapter'}, not a whole model; make one of it first: "
            f"python -m poweropd_lite.export {shlex.quote(str(run or name))} --to merged-16bit, and type --{role} with its folder{beside}"
        ) from error
