"""Is it right on this card? Log-probs, both scores, full_kl and their gradients against float32 on full logits; NF4
against its own dequantised weights in float32; the decoder, captured in graphs, against the model.
"""

import torch
from random_models import make_student, make_teacher
from shapes import SHAPES, VOCABULARY, device, prompts, sampling, settings

from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.kernels.products import Head
from poweropd_lite.method.logprobs import Sampling, kept_ids, reverse_kl, score_tokens
from poweropd_lite.method.rollout import Draws
from poweropd_lite.models.loading import final_hidden


def relative(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """Returns the norm of the difference by the norm of what is wanted."""
    return ((ours.float() - wanted.float()).norm() / wanted.float().norm()).item()


def heads(tiny: bool) -> dict[str, float]:
    """The chunked log-probs in bfloat16 against float32 on every logit, from the same bfloat16 inputs."""
    count, size, rows = (64, 64, 1000) if tiny else (512, 1024, VOCABULARY)
    generator = torch.Generator(device()).manual_seed(0)

    def draw(*shape, scale):
        return (torch.randn(*shape, generator=generator, device=device()) * scale).bfloat16()

    hidden, weight = draw(count, size, scale=1.0), draw(rows, size, scale=0.06)
    theirs, their_weight = draw(count, size, scale=1.0), draw(rows, size, scale=0.06)
    ids = torch.randint(0, rows - 300, (count,), generator=generator, device=device())
    cut = Sampling(0.9, 20, 0.95, torch.arange(rows - 267, rows, device=device()))
    torch.backends.cuda.matmul.allow_tf32 = False
    facts = {}
    for name in ("full", "sampled", "full_kl", "kernels"):  # the last: of what the head's kernels take
        x = hidden.clone().requires_grad_()
        z = (wide := hidden.float().requires_grad_()) @ weight.float().T
        if name == "full_kl":
            value = reverse_kl(x, Head(weight), theirs, Head(their_weight), ids, ids, Sampling()).kl
            log_p = (theirs.float() @ their_weight.float().T).log_softmax(-1)
            wanted = (z.softmax(-1) * (z.log_softmax(-1) - log_p)).sum(-1)
        else:
            held = Sampling(forbidden=cut.forbidden)
            score = "sampled" if name == "kernels" else name
            value = score_tokens(x, Head(weight), ids, held if name == "kernels" else cut, score).score
            if name == "kernels":
                z = z.index_fill(-1, held.forbidden, -torch.inf)
            if name == "sampled":
                kept = kept_ids(z.detach(), cut).scatter(-1, ids[:, None], True)
                z = (z / 0.9).masked_fill(~kept, -torch.inf)
            wanted = z.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        value.sum().backward()
        wanted.sum().backward()
        facts[f"{name}: largest error, nats"] = (value - wanted).abs().max().item()
        facts[f"{name}: gradient, relative error"] = relative(x.grad, wide.grad)
    return facts


@torch.no_grad()
def nf4(tiny: bool) -> dict[str, float]:
    """One NF4 layer against its dequantised weights in float32, and the 4-bit teacher against itself unquantised."""
    teacher, bits = make_teacher("tiny-teacher" if tiny else "4b", torch.bfloat16)
    if bits == 16:
        return {"NF4: bitsandbytes is not installed": 0.0}
    import bitsandbytes.functional as bnb

    worst = 0.0
    for module in teacher.model.modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            x = torch.randn(64, module.in_features, device=device(), dtype=torch.bfloat16)
            weight = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            worst = max(worst, relative(module(x), x.float() @ weight.T))
    return {"NF4 product against its dequantised weights in float32: worst relative error": worst}


@torch.no_grad()
def decoder(tiny: bool) -> dict[str, float]:
    """Completions of the loop as this device runs it, and the same ids by a plain forward in the same dtype."""
    name, longest = ("tiny-student", 24) if tiny else ("0.6b", 300)
    facts = {}
    for full in (False, True):
        student = make_student(name, settings(full_finetune=full, lr=1e-4), torch.bfloat16)
        said: list[str] = []
        engine = LoopEngine(student, frozenset({7}), said.append)
        engine.sync()
        asked = prompts(8, 20, SHAPES[name].vocabulary)
        rollouts = engine.sample(asked, Draws(0, 0, 0, tuple(range(8))), sampling(SHAPES[name]), longest)
        engine.release()
        gaps, student.model = [], student.model.eval()
        for r in rollouts:
            ids = torch.tensor([r.prompt_ids + r.completion_ids], device=device())
            with student.compute():
                hidden = final_hidden(student.model, ids)[0, len(r.prompt_ids) - 1 : -1]
            new = torch.tensor(r.completion_ids, device=device())
            log_q = score_tokens(hidden, student.head, new, Sampling(), "full").logprob
            gaps.append((log_q - torch.tensor(r.logprobs, device=device())).abs())
        kind = "every weight" if full else "LoRA"
        facts[f"loop, {kind}: mean gap to a plain forward, nats"] = torch.cat(gaps).mean().item()
        facts[f"loop, {kind}: CUDA graphs"] = float(engine.graphs)
        facts[f"loop, {kind}: tokens"] = float(sum(len(r.completion_ids) for r in rollouts))
    return facts


def measure(tiny: bool) -> dict:
    """Returns every error, and which are faults; run.py refuses to time what is wrong."""
    errors = heads(tiny) | nf4(tiny) | decoder(tiny)
    return {"errors": errors, "faults": faults(errors)}


def faults(facts: dict[str, float]) -> list[str]:
    """Returns what is too far off to be rounding: bfloat16 has eight bits."""
    limits = {"largest error, nats": 0.02, "gradient, relative error": 0.02, "worst relative": 0.02, "mean gap": 0.05}
    return [
        f"{name}: {value:.3g} > {limit}"
        for name, value in facts.items()
        for part, limit in limits.items()
        if part in name and not value <= limit
    ]
