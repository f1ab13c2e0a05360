"""What a reward does to a set of tokens, and truncated sampling to a distribution: pure maths on tensors of N tokens.

r is the reward, g = ||onehot - q|| the norm of a token's score function with respect to the logits: |r| g is the norm
of the token's own gradient there. "Top 1%" is the ceil(N / 100) largest.

Where two models are compared, the reference's rewards are r, the candidate's s. A reward of exactly 0 has no sign: a token
flips only from above zero to below, or back.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from poweropd_lite.kernels.products import Head, logit_chunks
from poweropd_lite.method.logprobs import Sampling, kept_ids

DECILES = 10


def reward_facts(r: Tensor, pull: Tensor | None, log_ratio: Tensor | None, live: float) -> dict[str, Any]:
    """Returns what docs/advise.md lists of rewards `r` [N]; `pull` is g [N]. None where a number is not defined.

    Without `pull` there is no gradient of single tokens, without `log_ratio` no sign to compare with.
    """
    count, mass = len(r), r.abs().sum().item()
    shares = {"live": r.abs() > live, "positive": r > 0, "negative": r < 0, "zero": r == 0}
    weights = None if pull is None else r.abs() * pull
    p05, p95 = numpy.quantile(r.numpy(), [0.05, 0.95]).tolist()  # torch.quantile takes 16 million values at most
    return {
        "tokens": count,
        **{f"{name}_share": which.sum().item() / count for name, which in shares.items()},
        "positive_mass": r.clamp_min(0.0).sum().item() / mass if mass > 0 else None,
        "sign_unlike_log_ratio": None if log_ratio is None else (r.sign() * log_ratio.sign() < 0).sum().item() / count,
        "mean": r.mean().item(),
        "mean_abs": mass / count,
        "variance": r.var(correction=0).item(),
        "min": r.min().item(),
        "p05": p05,
        "p95": p95,
        "max": r.max().item(),
        "tail": top_share(r.abs()),
        "top_gradient": None if weights is None else top_share(weights),
        "effective_share": None if weights is None else effective_share(weights),
    }


def by_decile(r: Tensor, pull: Tensor, log_ratio: Tensor, place: Tensor, live: float) -> list[dict[str, Any] | None]:
    """Returns reward_facts of each tenth of the completions by tokens' `place` [N] (0 to 9); None: an empty one."""
    parts = [place == i for i in range(DECILES)]
    return [reward_facts(r[p], pull[p], log_ratio[p], live) if p.any() else None for p in parts]


def places(lengths: tuple[int, ...]) -> Tensor:
    """Returns the decile, 0 to 9, of each token of rollouts of these lengths: floor(10 i / n) for token i of n."""
    return torch.cat([torch.arange(n) * DECILES // max(n, 1) for n in lengths])


def top_share(weights: Tensor) -> float | None:
    """Returns the share of the sum of `weights` [N], at least 0, that the top 1% hold; None if they are all 0."""
    total = weights.sum()
    return (weights.topk(math.ceil(len(weights) / 100)).values.sum() / total).item() if total > 0 else None


def effective_share(weights: Tensor) -> float | None:
    """Returns (sum w)^2 / (N sum w^2): 1 if all tokens weigh the same, 1/N if one has all; None if they are all 0."""
    total = weights.sum()
    return (total / len(weights) * total / weights.square().sum()).item() if total > 0 else None


@torch.no_grad()
def truncation_facts(hidden: Tensor, head: Head, ids: Tensor, samplings: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """Returns ||onehot(id) - q|| of `ids` [N], which is sqrt(1 - 2 q(id) + sum q^2), and [N, K, 4] on each of K samplings.

    The four, with s the distribution that a sampling draws from: untruncated probability of the ids that it keeps, 1 if the
    token is one of them, ||s - q||, the norm of the expected score function of log q under s, and ||onehot(id) - s||. With a
    plain one: 1, 1, 0 and ||onehot(id) - q||.
    """
    pull = torch.empty(hidden.shape[0], dtype=head.wide, device=hidden.device)
    facts = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=head.wide, device=hidden.device)
    facts = facts.repeat(hidden.shape[0], len(samplings), 1)
    for chunk, logits in logit_chunks(hidden, head):
        target = ids[chunk, None]
        minus_one = -torch.ones_like(target, dtype=head.wide)
        probs = logits.softmax(-1)
        for k, sampling in enumerate(samplings):
            if sampling.is_plain:
                continue
            kept = kept_ids(logits, sampling)
            drawn = (logits / sampling.temperature).masked_fill_(~kept, -torch.inf).softmax(-1)
            facts[chunk, k, 0] = probs.masked_fill(~kept, 0.0).sum(-1)
            facts[chunk, k, 1] = kept.gather(-1, target).squeeze(-1).to(head.wide)
            facts[chunk, k, 2] = (drawn - probs).norm(dim=-1)
            facts[chunk, k, 3] = drawn.scatter_add_(-1, target, minus_one).norm(dim=-1)
        # As a norm, not by its formula: near q = 1 that one subtracts nearly equal numbers.
        pull[chunk] = probs.scatter_add_(-1, target, minus_one).norm(dim=-1)
    plain = [k for k, sampling in enumerate(samplings) if sampling.is_plain]
    facts[:, plain, 3] = pull[:, None]
    return pull, facts


def truncation(mass: Tensor, kept: Tensor, bias: Tensor) -> dict[str, float]:
    """Returns what a sampling keeps at N positions: its ids' `mass`, 1 in `kept` for one of them, `bias` ||s - q||."""
    return {
        "kept_mass": mass.mean().item(),
        "kept_mass_p05": float(numpy.quantile(mass.numpy(), 0.05)),
        "tokens_outside": 1.0 - kept.mean().item(),
        "bias": bias.mean().item(),
    }


def truncation_push(r: Tensor, pull: Tensor, kept: Tensor, bias: Tensor) -> dict[str, float | None]:
    """Returns the push of score `full` that comes from the truncation alone, as a share of the gradient.

    `push` is sum |r| ||s - q|| / sum |r| g, `net_push` sum r ||s - q|| / sum |r| g, over tokens that could be drawn.
    """
    inside = kept > 0
    r, pull, bias = r[inside], pull[inside], bias[inside]
    total = (r.abs() * pull).sum().item()
    if total == 0:
        return {"push": None, "net_push": None}
    return {"push": (r.abs() * bias).sum().item() / total, "net_push": (r * bias).sum().item() / total}


def log_prob_error(reference: Tensor, candidate: Tensor) -> dict[str, float]:
    """Returns mean, mean absolute, 95th percentile of the absolute, and largest error of log-probs [N], nats."""
    error = candidate.double() - reference.double()
    size = error.abs()
    p95 = float(numpy.quantile(size.numpy(), 0.95))
    return {"mean": error.mean().item(), "mean_abs": size.mean().item(), "p95_abs": p95, "max_abs": size.max().item()}


def reward_error(r: Tensor, s: Tensor) -> dict[str, float | None]:
    """Returns what docs/audit.md lists of the candidate's rewards `s` against the reference's `r`, both [N].

    None where a number is not defined: shares of the reward mass sum |r| when that is 0, the correlation when r or s is
    the same for every token.
    """
    mass, count, x, y = r.abs().sum().item(), len(r), r - r.mean(), s - s.mean()
    flipped, vanished = (r.sign() * s.sign()) < 0, (r != 0) & (s == 0)
    shares = {"flipped": flipped, "vanished": vanished, "appeared": (r == 0) & (s != 0)}
    masses = {"relative_error": (s - r).abs(), "flipped_mass": r.abs()[flipped], "vanished_mass": r.abs()[vanished]}
    return {
        "mean_abs_error": (s - r).abs().mean().item(),
        **{f"{name}_share": which.sum().item() / count for name, which in shares.items()},
        **{name: values.sum().item() / mass if mass > 0 else None for name, values in masses.items()},
        "correlation": None if _constant(r, s) else (x @ y / (x.norm() * y.norm())).item(),
        "mean_abs_reward": mass / count,
    }


def intervals(r: Tensor, s: Tensor, lengths: Sequence[int], resamples: int, seed: int) -> dict[str, list[float] | None]:
    """Returns 95% percentile intervals of flipped_mass and correlation, by drawing whole rollouts with replacement.

    `lengths` are the tokens of each rollout, whose sum is N. Tokens of one rollout hang together, so drawing tokens
    would make the intervals too narrow. None where a number is not defined in every resample.
    """
    x, y = r - r.mean(), s - s.mean()  # centred once: no difference of large sums below
    flipped = r.abs() * ((r.sign() * s.sign()) < 0)
    columns = torch.stack([torch.ones_like(r), r.abs(), flipped, x, y, x * x, y * y, x * y], -1)
    rollout = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    sums = torch.zeros(len(lengths), columns.shape[1], dtype=torch.float64).index_add_(0, rollout, columns)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(lengths), (resamples, len(lengths)), generator=generator)
    weights = torch.zeros(resamples, len(lengths), dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    n, mass, flips, sx, sy, sxx, syy, sxy = (weights @ sums).unbind(-1)
    correlation = (sxy - sx * sy / n) / ((sxx - sx * sx / n) * (syy - sy * sy / n)).sqrt()
    if _constant(r, s):
        correlation = torch.full_like(correlation, torch.nan)
    return {"flipped_mass": _middle(flips / mass), "correlation": _middle(correlation.clamp(-1.0, 1.0))}


def _constant(r: Tensor, s: Tensor) -> bool:
    return any(bool((values == values[0]).all()) for values in (r, s))


def _middle(values: Tensor) -> list[float] | None:
    if not values.isfinite().all():
        return None
    return torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
