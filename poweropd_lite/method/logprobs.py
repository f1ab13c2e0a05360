"""Log-probs of sampled tokens straight from hidden states, without a [tokens, vocabulary] tensor, and their gradients.

Logits are made for a few rows at a time: `LOGIT_ELEMENTS // vocabulary` of them, so the peak is the same for a vocabulary
of 512 and of 151,936, and for one rollout and a thousand. About four float32 tensors of that many are alive at once.

- Head frozen (LoRA): d(value)/d(hidden) is made in the forward pass, while the chunk's logits are there, and only scaled
  by the incoming gradient in the backward pass. No logits are made twice.
- Head trainable (full fine-tuning, tied embeddings, `modules_to_save`): the chunks are made again in the backward pass
  and the head's gradient is accumulated over them in float32.

Shapes: N tokens, D hidden size, V rows of the head. Logits are float32 (float64 if the weights are) for any model's dtype.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGIT_ELEMENTS = 1 << 24  # 64 MiB of float32 logits a chunk: 110 rows of Qwen3's vocabulary
_HALF = (torch.bfloat16, torch.float16)
_FEW_ROWS, _FEW_ROWS_BLOCK = 16, 1 << 10  # on a CPU so few rows are faster in blocks of a large head's rows
_VOCAB_BLOCK = 1 << 14  # head rows that are widened to float32 at a time where the matmul can't do so itself


@dataclass(frozen=True)
class Sampling:
    """How the next token was drawn, in the engine's order: forbidden ids out, temperature, top-k, then top-p.

    `forbidden` is an int64 tensor of ids that are never sampled, or None; `top_k` 0 and `top_p` 1 mean off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    forbidden: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether this is the model's own distribution: temperature 1 and every id possible."""
        has_forbidden = self.forbidden is not None and self.forbidden.numel() > 0
        return self.temperature == 1.0 and not has_forbidden and not self.truncates

    @property
    def truncates(self) -> bool:
        """Whether top-k or top-p removes anything."""
        return self.top_k > 0 or self.top_p < 1.0


class TokenScores(NamedTuple):
    """What the head says of N tokens; all [N], float32 (float64 with float64 weights); only `score` has a gradient."""

    score: Tensor  # log q (`full`), or the log-prob under the sampled distribution (`sampled`)
    logprob: Tensor  # log q of the token: temperature 1, untruncated, at most 0
    entropy: Tensor  # of the untruncated distribution, nats
    kept_mass: Tensor  # untruncated probability of the ids that could be sampled; 1 without truncation
    added: Tensor  # 1 where the token is outside the kept set (`sampled` adds it to the set)


class TokenKL(NamedTuple):
    """Reverse KL of N positions; all [N]; only `kl` has a gradient."""

    kl: Tensor  # sum over rows both heads have of q (log q - log p)
    logprob: Tensor  # log q of the sampled token
    teacher_logprob: Tensor  # log p of the sampled token
    entropy: Tensor
    kept_mass: Tensor


def kept_ids(logits: Tensor, sampling: Sampling) -> Tensor:
    """Returns which ids `sampling` can draw: bool [..., V], for logits [..., V].

    Ties with the last id let in are let in too, as vLLM and transformers do for top-k. Without truncation all rows are alike.
    """
    if not sampling.truncates:
        allowed = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        if sampling.forbidden is not None:
            allowed.index_fill_(0, sampling.forbidden, False)  # (assigning by index makes a card wait for the host)
        return allowed.expand(logits.shape)
    z = logits.clone()
    if sampling.forbidden is not None:
        z.index_fill_(-1, sampling.forbidden, -torch.inf)
    largest = z.topk(min(sampling.top_k, z.shape[-1])).values if sampling.top_k else z.sort(descending=True).values
    limit = largest[..., -1:].clamp_min(torch.finfo(z.dtype).min)  # a forbidden id is below any limit
    if sampling.top_p < 1.0:
        probs = (largest / sampling.temperature).softmax(-1)
        before = probs.cumsum(-1) - probs  # mass of the likelier ids
        count = (before < sampling.top_p).sum(-1, keepdim=True).clamp_min(1)
        limit = torch.maximum(limit, largest.gather(-1, count - 1))
    return z >= limit


def score_tokens(hidden: Tensor, weight: Tensor, ids: Tensor, sampling: Sampling, score: str) -> TokenScores:
    """Scores `ids` [N] int64 given the hidden states [N, D] that predict them and the head's `weight` [V, D].

    `score` "full" is log q itself. "sampled" is the log-softmax of logits / temperature over the ids that `sampling` could
    have drawn, plus the token itself; that set is a constant to the gradient. With a plain `sampling` they are equal.
    """
    value, extras = _Rows.apply(hidden, weight, _ScoreRows(ids, sampling, score))
    return TokenScores(value, *extras.unbind(-1))


def reverse_kl(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, ids: Tensor, teacher_ids: Tensor,
    sampling: Sampling,
) -> TokenKL:  # fmt: skip
    """Returns the reverse KL at N positions, from both models' hidden states ([N, D] and [N, D_T]) and heads.

    The sum runs over the rows that both heads have; each softmax is over its model's own rows. `ids` and `teacher_ids`
    [N] only choose whose log-probs are reported.
    """
    rows = _KLRows(ids, teacher_ids, teacher_hidden.detach(), teacher_weight.detach(), sampling)
    value, extras = _Rows.apply(hidden, weight, rows)
    return TokenKL(value, *extras.unbind(-1))


def logit_chunks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields the logits [C, V] of a few rows at a time, and which rows of `hidden` [N, D] they are."""
    matrix = _matrix(hidden, weight)
    for chunk in _chunks(hidden.shape[0], weight.shape[0]):
        yield chunk, float_logits(hidden[chunk], matrix)


def float_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Returns logits [C, V], hidden [C, D] @ weight [V, D]^T less each row's largest, in float32 (float64 for float64).

    Less it, for log-probs of logits near 30 round at that size, which a reward of alpha 500 shows as 1e-3 of itself.
    """
    half, few = weight.dtype in _HALF, not weight.is_cuda and hidden.shape[0] < _FEW_ROWS
    with torch.autocast(hidden.device.type, enabled=False):  # which would round them to half precision
        if weight.is_cuda and hidden.dtype in _HALF:
            logits = torch.mm(hidden, weight.to(hidden.dtype).T, out_dtype=torch.float32)
        elif not half and not few:
            logits = hidden.to(weight.dtype) @ weight.T
        else:
            wide = hidden.to(torch.float32 if half else weight.dtype)
            logits = wide.new_empty(hidden.shape[0], weight.shape[0])
            size = _FEW_ROWS_BLOCK if few and not half else _VOCAB_BLOCK
            for start in range(0, weight.shape[0], size):
                block = slice(start, start + size)
                torch.mm(wide, weight[block].to(wide.dtype).T, out=logits[:, block])
    return logits.sub_(logits.amax(-1, keepdim=True))


def _pull_back(dlogits: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns dlogits [C, V] @ weight [V, D] in float32 (float64): the gradient of the hidden states."""
    if weight.is_cuda and dtype in _HALF:
        return torch.mm(dlogits.to(dtype), weight.to(dtype), out_dtype=torch.float32)
    if weight.dtype not in _HALF:
        return dlogits @ weight
    out = dlogits.new_zeros(dlogits.shape[0], weight.shape[1])
    for start in range(0, weight.shape[0], _VOCAB_BLOCK):
        block = slice(start, start + _VOCAB_BLOCK)
        out.addmm_(dlogits[:, block], weight[block].float())
    return out


class _Rows(torch.autograd.Function):
    """One value a row of logits, chunk by chunk; `rows(logits, chunk, want_grad)` gives value, extras and d(value)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, rows: "_ScoreRows | _KLRows") -> tuple[Tensor, Tensor]:
        count, wide = hidden.shape[0], torch.float64 if weight.dtype == torch.float64 else torch.float32
        matrix = _matrix(hidden, weight)
        value = torch.empty(count, dtype=wide, device=hidden.device)
        extras = torch.empty(count, rows.extras, dtype=wide, device=hidden.device)
        ctx.rows, ctx.head_trains = rows, ctx.needs_input_grad[1]
        hidden_grad_now = ctx.needs_input_grad[0] and not ctx.head_trains
        dhidden = torch.empty(hidden.shape, dtype=wide, device=hidden.device) if hidden_grad_now else None
        for chunk in _chunks(count, weight.shape[0]):
            logits = float_logits(hidden[chunk], matrix)
            value[chunk], extras[chunk], dlogits = rows(logits, chunk, hidden_grad_now)
            del logits
            if dhidden is not None and dlogits is not None:
                dhidden[chunk] = _pull_back(dlogits, matrix, hidden.dtype)
        ctx.mark_non_differentiable(extras)
        ctx.hidden_dtype = hidden.dtype
        ctx.save_for_backward(*((hidden, weight) if ctx.head_trains else (dhidden,)))
        return value, extras

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if not ctx.head_trains:
            (dhidden,) = ctx.saved_tensors
            return (dhidden * grad[:, None]).to(ctx.hidden_dtype), None, None
        hidden, weight = ctx.saved_tensors
        matrix, dhidden = _matrix(hidden, weight), torch.empty_like(hidden)
        dweight = torch.zeros(weight.shape, dtype=grad.dtype, device=weight.device)
        for chunk in _chunks(hidden.shape[0], weight.shape[0]):
            _, _, dlogits = ctx.rows(float_logits(hidden[chunk], matrix), chunk, True)
            dlogits *= grad[chunk, None]
            dhidden[chunk] = _pull_back(dlogits, matrix, hidden.dtype).to(hidden.dtype)
            dweight.addmm_(dlogits.T, hidden[chunk].to(grad.dtype))
        return dhidden, dweight.to(weight.dtype), None


def _matrix(hidden: Tensor, weight: Tensor) -> Tensor:
    """Returns the head as the matmuls take it: once a call, not once a chunk, in the hidden states' half precision."""
    return weight.to(hidden.dtype) if weight.is_cuda and hidden.dtype in _HALF else weight


def _chunks(count: int, vocabulary: int) -> list[slice]:
    rows = max(1, LOGIT_ELEMENTS // vocabulary)
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


class _ScoreRows:
    """log q or the sampled score of each row's token. d(score)/d(logits) is (onehot - softmax over the kept) / T."""

    extras = 4

    def __init__(self, ids: Tensor, sampling: Sampling, score: str) -> None:
        self.ids, self.sampling = ids, sampling
        self.as_sampled = score == "sampled" and not sampling.is_plain

    def __call__(self, logits: Tensor, chunk: slice, want_grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        target = self.ids[chunk, None]
        probs, total, logprob, entropy = _softmax_facts(logits, target)
        kept_mass, added, score, temperature = torch.ones_like(logprob), torch.zeros_like(logprob), logprob, 1.0
        if not self.sampling.is_plain:
            kept = kept_ids(logits, self.sampling)
            kept_mass = probs.masked_fill(~kept, 0.0).sum(-1)
            added = 1.0 - kept.gather(-1, target).squeeze(-1).to(added.dtype)
        if self.as_sampled:
            temperature = self.sampling.temperature
            kept = kept.scatter(-1, target, True)
            probs = scaled = logits.div_(temperature).masked_fill_(~kept, -torch.inf)  # frees the softmax
            total = scaled.logsumexp(-1, keepdim=True)
            score = (scaled.gather(-1, target) - total).squeeze(-1).clamp_max(0.0)
            if want_grad:
                probs = scaled.sub_(total).exp_()
        dlogits = None
        if want_grad:
            dlogits = probs.neg_()
            dlogits.scatter_add_(-1, target, torch.ones_like(target, dtype=dlogits.dtype))
            if temperature != 1.0:
                dlogits.div_(temperature)
        return score, torch.stack([logprob, entropy, kept_mass, added], -1), dlogits


class _KLRows:
    """Reverse KL of each row. With S the rows both heads have and KL its value,
    d(KL)/d(z_v) = q_v ([v in S] (log q_v - log p_v + 1) - KL - q(S)), which is q (log q - log p - KL) when S is all rows.
    """  # fmt: skip

    extras = 4

    def __init__(
        self, ids: Tensor, teacher_ids: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, kept_by: Sampling
    ) -> None:
        self.ids, self.teacher_ids, self.kept_by = ids, teacher_ids, kept_by
        self.teacher_hidden, self.teacher_weight = teacher_hidden, teacher_weight

    def __call__(self, logits: Tensor, chunk: slice, want_grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        target = self.ids[chunk, None]
        probs, total, logprob, entropy = _softmax_facts(logits, target)
        kept_mass = torch.ones_like(logprob)
        if not self.kept_by.is_plain:
            kept_mass = probs.masked_fill(~kept_ids(logits, self.kept_by), 0.0).sum(-1)
        teacher = float_logits(self.teacher_hidden[chunk], self.teacher_weight)
        teacher.sub_(teacher.logsumexp(-1, keepdim=True))
        teacher_logprob = teacher.gather(-1, self.teacher_ids[chunk, None]).squeeze(-1).clamp_max(0.0)
        shared = min(logits.shape[-1], teacher.shape[-1])
        ratio = logits.sub_(total)
        ratio[:, :shared].sub_(teacher[:, :shared])
        ratio[:, shared:] = 0.0
        del teacher
        kl = torch.linalg.vecdot(probs, ratio)
        dlogits = None
        if want_grad:
            ratio[:, :shared] += 1.0
            shared_mass = probs[:, :shared].sum(-1)
            dlogits = ratio.sub_((kl + shared_mass)[:, None]).mul_(probs)
        return kl, torch.stack([logprob, teacher_logprob, entropy, kept_mass], -1), dlogits


def _softmax_facts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns softmax [C, V], logsumexp [C, 1], log q of the target [C] (at most 0), entropy [C]; logits stay as they are."""
    top = logits.argmax(-1, keepdim=True)  # its exp is 1 (float_logits), and is added last, to leave the sum its digits
    probs = logits.exp().scatter_(-1, top, 0.0)
    rest = probs.sum(-1, keepdim=True)
    probs, total = probs.scatter_(-1, top, 1.0).div_(1.0 + rest), rest.log1p()
    logprob = (logits.gather(-1, target) - total).squeeze(-1).clamp_max(0.0)
    entropy = total.squeeze(-1) - torch.linalg.vecdot(probs, logits)
    return probs, total, logprob, entropy
