"""Rollouts of the bundled pair and their log-probs the plain way: transformers, one rollout at a time, float64, whole logits."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

TINY = Path(__file__).parent.parent / "poweropd_lite" / "tiny"


def drawn_rollouts(config, count):
    """Returns what a run with `config` is prepared with, and its rollouts, step by step."""
    from poweropd_lite.base.progress import Counting
    from poweropd_lite.rehearse.scored import draw, prepare_to_score
    from poweropd_lite.run.session import load_sampler

    ready = prepare_to_score(config, print)
    _, engine = load_sampler(ready, print)
    return ready, draw(ready, engine, count, Counting("rollout", say=print)).steps


def float64_model(role):
    """Returns the bundled student or teacher in float64."""
    return AutoModelForCausalLM.from_pretrained(TINY / role, dtype=torch.float64).eval()


def nf4_model():
    """Returns the bundled teacher in float64 with the values that NF4 leaves of its matrices, the head's left whole."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    model = float64_model("teacher")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            packed = quantize_4bit(module.weight.data.float(), quant_type="nf4", compress_statistics=True)
            module.weight.data = dequantize_4bit(*packed).double()
    return model


def token_rows(model, rollouts):
    """Returns the log-softmax rows [N, V] at the sampled tokens, a masked final stop left out, and the ids [N]."""
    rows, ids = [], []
    for rollout in rollouts:
        completion = list(rollout.completion_ids)
        kept = completion[:-1] if rollout.finish == "stop" else completion
        whole = torch.tensor([[*rollout.prompt_ids, *completion]])
        first = len(rollout.prompt_ids) - 1
        rows.append(model(whole).logits[0, first : first + len(kept)].log_softmax(-1))
        ids += kept
    return torch.cat(rows), torch.tensor(ids)


def token_logprobs(model, rollouts):
    """Returns the log-probs of those tokens [N]."""
    with torch.no_grad():
        rows, ids = token_rows(model, rollouts)
    return rows.gather(-1, ids[:, None]).squeeze(-1)
