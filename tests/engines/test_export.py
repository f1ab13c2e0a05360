"""Exports opened by the real vLLM and the real llama.cpp, and a student of Unsloth's merged as Unsloth merges it."""

import json
from pathlib import Path

import pytest
from conftest import run_code, run_python

# Next-token log-probs of plain PEFT on plain transformers, in float32: the reference.
LIVE = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from poweropd_lite.models.loading import model_path
base = sys.argv[2] if len(sys.argv) > 2 else model_path("bundled", "student")
tokenizer = AutoTokenizer.from_pretrained(base)
texts = ["Compute 8 + 5 * 3.", "Ann has 12 pens and loses 5.", "x = 7, so 2x + 1 = 15\\n\\nIt's \\\\boxed{15}.", "<|im_start|>user\\n12345  naïve 東京<|im_end|>\\n"]
ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
if sys.argv[1] != "none":
    model = PeftModel.from_pretrained(model, sys.argv[1])
with torch.no_grad():
    said = [model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1) for row in ids]
print("RESULT " + json.dumps({"texts": texts, "ids": ids, "logprobs": [rows.tolist() for rows in said]}))
"""
LLAMA_CPP = """
import json, sys
import numpy as np
from llama_cpp import Llama, llama_vocab_is_eog
live = json.load(open(sys.argv[2]))
model = Llama(sys.argv[1], n_ctx=256, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)  # keys and values in float32
gaps, same = [], []
for text, ids, said in zip(live["texts"], live["ids"], live["logprobs"]):
    same.append(model.tokenize(text.encode(), add_bos=False, special=True) == ids)
    model.reset()
    model.eval(ids)
    z = np.array(model.scores[: len(ids)], dtype=np.float64)
    z -= z.max(-1, keepdims=True)
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    said = np.array(said)
    gaps.append(np.abs(z - said)[said > -7])
gaps = np.concatenate(gaps)
stops = [i for i in range(model.n_vocab()) if llama_vocab_is_eog(model._model.vocab, i)]
print("RESULT " + json.dumps({"mean": gaps.mean(), "largest": gaps.max(), "same_ids": same, "stops": stops,
                              "template": "im_start" in model.metadata.get("tokenizer.chat_template", "")}))
"""
VLLM = """
import json, os, sys
os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0")
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
model, adapter, live = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
lora = {} if adapter == "none" else {"enable_lora": True, "max_lora_rank": 16}
llm = LLM(model=model, dtype="float32", max_model_len=256, max_num_seqs=8, kv_cache_memory_bytes=1 << 28, enforce_eager=True, max_logprobs=-1, **lora)
request = None if adapter == "none" else LoRARequest("a", 1, adapter)
asked = SamplingParams(max_tokens=1, temperature=0, logprobs=-1)
# Every beginning of a text is a prompt: vLLM's CPU adapters give no log-probs of a prompt's own tokens.
starts = [(i, n) for i, ids in enumerate(live["ids"]) for n in range(1, len(ids) + 1)]
prompts = [{"prompt_token_ids": live["ids"][i][:n]} for i, n in starts]
gap, count = 0.0, 0
for (i, n), out in zip(starts, llm.generate(prompts, asked, lora_request=request, use_tqdm=False)):
    said = live["logprobs"][i][n - 1]
    for token, entry in out.outputs[0].logprobs[0].items():
        if said[token] > -7:
            gap, count = max(gap, abs(entry.logprob - said[token])), count + 1
chat = [[{"role": "user", "content": f"Compute {i} + 4 * 6."}] for i in range(2, 10)]
params = SamplingParams(max_tokens=100, temperature=0) if adapter == "none" else SamplingParams(max_tokens=100, temperature=0, stop_token_ids=[474, 476])
kwargs = {"enable_thinking": False}
done = llm.chat(chat, params, lora_request=request, use_tqdm=False, chat_template_kwargs=kwargs)
print("RESULT " + json.dumps({"gap": gap, "count": count, "finish": [out.outputs[0].finish_reason for out in done]}))
"""
UNSLOTH = """
import json, sys
from unsloth import FastLanguageModel
import torch
model, tokenizer = FastLanguageModel.from_pretrained(sys.argv[1], max_seq_length=256, dtype=torch.float32, load_in_4bit=False)
model.save_pretrained_merged(sys.argv[2], tokenizer, save_method="merged_16bit")
print("RESULT {}")
"""
# A Llama with llama3 position scaling, untied, whose tokenizer splits numbers by threes.
LLAMA = """
import sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from poweropd_lite.models.loading import model_path
source = Path(model_path("bundled", "student"))
text = (source / "tokenizer.json").read_text().replace("p{N}|", "p{N}{1,3}|").replace('"ignore_merges": false', '"ignore_merges": true')
Path("tokenizer.json").write_text(text)
tokenizer = PreTrainedTokenizerFast(tokenizer_file="tokenizer.json", eos_token="<|endoftext|>")
tokenizer.chat_template = (source / "chat_template.jinja").read_text()
scaling = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
torch.manual_seed(0)
config = LlamaConfig(vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     head_dim=32, rope_parameters=scaling, max_position_embeddings=256, tie_word_embeddings=False, initializer_range=0.2,
                     eos_token_id=474, bos_token_id=None)
LlamaForCausalLM(config).save_pretrained("llama")
tokenizer.save_pretrained("llama")
print("RESULT {}")
"""


def exported(folder: Path, *flags: str) -> Path:
    done = run_python("-m", "poweropd_lite.export", *flags, cwd=folder, imported="peft")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return folder / flags[flags.index("--output") + 1]


@pytest.fixture(scope="module")
def live(vllm_run, tmp_path_factory) -> Path:
    """A file with what the run's adapter says."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "live.json").write_text(
        json.dumps(run_code(LIVE, str(vllm_run[1] / "adapter"), cwd=folder, imported="peft"))
    )
    return folder / "live.json"


# mean and largest difference, nats, of tokens that the live model gives more than e^-7
@pytest.mark.parametrize(
    "kind, mean, largest", [("f32", 1e-4, 1e-3), ("f16", 2e-3, 0.02), ("bf16", 0.02, 0.3), ("q8_0", 0.05, 0.6)]
)
def test_llama_cpp_reads_the_same_ids_and_says_the_same(vllm_run, live, tmp_path, kind, mean, largest):
    out = exported(tmp_path, str(vllm_run[1]), "--to", "gguf", "--gguf-type", kind, "--output", "g")
    said = run_code(LLAMA_CPP, str(out / f"model-{kind}.gguf"), str(live), cwd=tmp_path, imported="peft")
    assert said["same_ids"] == [True] * 4 and said["template"]
    assert said["mean"] < mean and said["largest"] < largest, said
    assert said["stops"] == [474, 476]


def test_llama_cpp_reads_a_llama_with_scaled_positions(tmp_path):
    run_code(LLAMA, cwd=tmp_path, imported="peft")
    (tmp_path / "live.json").write_text(json.dumps(run_code(LIVE, "none", "llama", cwd=tmp_path, imported="peft")))
    out = exported(tmp_path, "llama", "--to", "gguf", "--gguf-type", "f32", "--output", "g")
    said = run_code(LLAMA_CPP, str(out / "model-f32.gguf"), str(tmp_path / "live.json"), cwd=tmp_path, imported="peft")
    assert said["same_ids"] == [True] * 4
    assert said["mean"] < 1e-4 and said["largest"] < 2e-3, said


def test_vllm_serves_the_merged_model_and_the_adapter(vllm_run, live, tmp_path):
    merged = exported(tmp_path, str(vllm_run[1]), "--to", "merged-16bit", "--dtype", "float32", "--output", "m")
    adapter = exported(tmp_path, str(vllm_run[1]), "--to", "adapter", "--output", "a")
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    for model, lora in ((merged, "none"), (base, adapter)):
        said = run_code(VLLM, str(model), str(lora), str(live), cwd=tmp_path, imported="vllm")
        assert said["count"] > 500 and said["gap"] < 1e-3, said
        assert said["finish"].count("stop") >= 7  # of eight greedy answers; its base stops in 86%


def test_a_student_of_unsloth_s_is_merged_as_unsloth_merges_it(unsloth_run, tmp_path):
    import torch
    from safetensors.torch import load_file

    ours = load_file(
        exported(tmp_path, str(unsloth_run[1]), "--to", "merged-16bit", "--output", "m") / "model.safetensors"
    )
    run_code(UNSLOTH, str(unsloth_run[1] / "adapter"), str(tmp_path / "theirs"), cwd=tmp_path, imported="unsloth")
    theirs = {}
    for file in (tmp_path / "theirs").glob("*.safetensors"):
        theirs |= load_file(file)
    theirs.pop("lm_head.weight", None)
    assert set(theirs) == set(ours)
    for name, weight in ours.items():
        torch.testing.assert_close(weight.float(), theirs[name].float(), rtol=2**-7, atol=1e-6)
