"""What a truncated sampling leaves of a distribution, token by token, from the hidden states and the head."""

from collections.abc import Sequence

import torch
from torch import Tensor

from poweropd_lite.method.logprobs import Sampling, kept_ids, logit_chunks


@torch.no_grad()
def truncation_facts(
    hidden: Tensor, weight: Tensor, ids: Tensor, samplings: Sequence[Sampling]
) -> tuple[Tensor, Tensor]:
    """Returns ||onehot(id) - q|| of `ids` [N], which is sqrt(1 - 2 q(id) + sum q^2), and [N, K, 4] on each of K samplings.

    The four, with s the distribution that a sampling draws from: untruncated probability of the ids that it keeps, 1 if the
    token is one of them, ||s - q||, the norm of the expected score function of log q under s, and ||onehot(id) - s||. With a
    plain one: 1, 1, 0 and ||onehot(id) - q||.
    """
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    pull = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
    facts = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=wide, device=hidden.device)
    facts = facts.repeat(hidden.shape[0], len(samplings), 1)
    for chunk, logits in logit_chunks(hidden, weight):
        target = ids[chunk, None]
        minus_one = -torch.ones_like(target, dtype=wide)
        probs = logits.softmax(-1)
        for k, sampling in enumerate(samplings):
            if sampling.is_plain:
                continue
            kept = kept_ids(logits, sampling)
            drawn = (logits / sampling.temperature).masked_fill_(~kept, -torch.inf).softmax(-1)
            facts[chunk, k, 0] = probs.masked_fill(~kept, 0.0).sum(-1)
            facts[chunk, k, 1] = kept.gather(-1, target).squeeze(-1).to(wide)
            facts[chunk, k, 2] = (drawn - probs).norm(dim=-1)
            facts[chunk, k, 3] = drawn.scatter_add_(-1, target, minus_one).norm(dim=-1)
        # As a norm, not by its formula: near q = 1 that one subtracts nearly equal numbers.
        pull[chunk] = probs.scatter_add_(-1, target, minus_one).norm(dim=-1)
    plain = [k for k, sampling in enumerate(samplings) if sampling.is_plain]
    facts[:, plain, 3] = pull[:, None]
    return pull, facts
