"""A family's tiny random student sampled by the real vLLM through our engine, in the folder it runs in.

    python tests/engines/vllm_family.py FAMILY

Prints RESULT and what was found: why a run would not take vLLM, if so; and for two adapters, sent one after the other, how far
vLLM's log-probs of its tokens are from the model's own forward, from that without the adapter, and with the other one (nats).
What this version of vLLM lacks on a CPU is mended here, so that the rest of it is tried.
"""

import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from families import FAMILIES, VOCAB, make_family

from poweropd_lite.base.config import load_config
from poweropd_lite.engines.choose import vllm_lacks
from poweropd_lite.engines.vllm import VllmEngine
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Draws
from poweropd_lite.models.shape import read_config, served_run
from poweropd_lite.models.student import load_student

CPU = torch.device("cpu")
# vLLM's CPU build knows attention heads of 32 and more, and those of its linear attention are of 128.
LINEAR = {"linear_key_head_dim": 128, "linear_value_head_dim": 128}


def mend_experts() -> None:
    """Has vLLM choose the kernels of experts as without an adapter; it has none on experts."""
    import vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method as method

    choose = method.select_unquantized_moe_backend

    def without_lora(moe_config):
        return choose(moe_config=dataclasses.replace(moe_config, is_lora_enabled=False))

    method.select_unquantized_moe_backend = without_lora


def mend_torchvision() -> None:
    """Puts an empty torchvision where vLLM's class for text and pictures imports it; text never calls it."""
    import transformers.image_processing_backends  # noqa: F401  (which must not find it)

    name, outer = "torchvision", None
    for part in ("", ".transforms", ".v2", ".functional"):
        name += part
        sys.modules[name] = module = types.ModuleType(name)
        if outer is not None:
            setattr(outer, part[1:], module)
        outer = module
    from vllm.model_executor.models.qwen3_5 import Qwen3_5ForCausalLM
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.register_model("Qwen3_5ForCausalLM", Qwen3_5ForCausalLM)


def token_rows(student, rollouts) -> torch.Tensor:
    """Log-probs of every completion's ids by the model's own forward, a line at a time."""
    rows = []
    with torch.no_grad(), student.compute():
        for r in rollouts:
            ids, start = torch.tensor([r.prompt_ids + r.completion_ids]), len(r.prompt_ids)
            z = student.model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float()
            rows.append(z.log_softmax(-1).gather(-1, ids[0, start:, None])[:, 0])
    return torch.cat(rows)


def set_adapter(student, number: int) -> None:
    with torch.no_grad():
        for i, (name, p) in enumerate(student.trainable().items()):
            if "lora_B" in name:
                p.normal_(0, 0.2, generator=torch.Generator().manual_seed(1000 * number + i))


def main(family: str) -> None:
    """Prints RESULT and a JSON object."""
    changes = {"head_dim": 32} if "head_dim" in FAMILIES[family] else {"num_attention_heads": 2}
    linear = family == "qwen3_5_text"
    folder = make_family(family, Path(family), **changes, **(LINEAR if linear else {}))
    c = read_config(folder, "student")
    found = {"lacks": vllm_lacks(c, "cpu", torch.float32, True)}
    dtype = torch.bfloat16 if linear else torch.float32
    if linear and importlib.util.find_spec("torchvision") is None:
        mend_torchvision()
    elif family == "qwen3_moe":
        mend_experts()
    elif found["lacks"]:
        print("RESULT " + json.dumps(found), flush=True)
        return
    sizes = {"batch_size": 8, "max_prompt_tokens": 32, "max_new_tokens": 24, "lora_rank": 4}
    config = load_config(student=folder, **sizes)
    student = load_student(config, CPU, dtype)
    student.model.eval()
    engine = VllmEngine(student, served_run(config), frozenset({5, 6, 7}))
    generator = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(8, VOCAB, (n,), generator=generator).tolist()) for n in (3, 11, 20, 1, 6, 17, 9, 2)]
    found |= {"dtype": str(dtype).removeprefix("torch."), "gap": [], "largest": [], "off": [], "other": []}
    for number in (1, 2):
        set_adapter(student, number)
        engine.sync()
        rollouts = engine.sample(prompts, Draws(number, 0, 0, tuple(range(len(prompts)))), Sampling(), 24)
        said = torch.tensor([x for r in rollouts for x in r.logprobs])
        gaps = (said - token_rows(student, rollouts)).abs()
        found["gap"].append(gaps.mean().item())
        found["largest"].append(gaps.max().item())
        with student.without_adapter():
            found["off"].append((said - token_rows(student, rollouts)).abs().mean().item())
        set_adapter(student, 3 - number)
        found["other"].append((said - token_rows(student, rollouts)).abs().mean().item())
    engine.close()
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
