"""Log-probs of sampled tokens straight from hidden states, without a [tokens, vocabulary] tensor, and their gradients.

Logits are made for a few rows at a time: `LOGIT_ELEMENTS // vocabulary` of them, so the peak is the same for a vocabulary
of 512 and of 151,936, for one rollout and a thousand. Two float32 tensors of that many are alive at once, two more with
top-k or top-p, one with a soft cap. On a card with Triton, kernels/head.py makes them in one pass, gradients in another.

- Head frozen (LoRA): d(value)/d(hidden) is made in the forward pass, while the chunk's logits are there, and only scaled
  by the incoming gradient in the backward pass. No logits are made twice.
- Head trainable (full fine-tuning, tied embeddings, `modules_to_save`): each row's part in the loss, a reward, is known from
  its log-prob, so the head's gradient is made in the forward pass too.
- Ids that can't be drawn are taken out of the logits, a few columns, and counted apart: no pass over the rest is for them.

Shapes: N tokens, D hidden size, V rows of the head. Logits are float32 (float64 if the weights are) for any model's dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poweropd_lite.kernels import head as fused
from poweropd_lite.kernels.products import Head, add_outer, as_used, product_chunks, pull_back, write_logits

_NEVER = -1e30  # the logit of what can't be: its exp is 0, and so is their product
Weigh = Callable[[Tensor, slice], Tensor]
Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # log p, log q [R, V]: value [R, 1], slope by q


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
        return self.temperature == 1.0 and not self.truncates and (self.forbidden is None or not self.forbidden.numel())

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
    plain: Tensor  # `score` before it is multiplied by what `weigh` gives


class TokenKL(NamedTuple):
    """Reverse KL, or another divergence, of N positions; all [N]; only `kl` has a gradient."""

    kl: Tensor  # sum over rows both heads have of q (log q - log p)
    logprob: Tensor  # log q of the sampled token
    teacher_logprob: Tensor  # log p of the sampled token
    entropy: Tensor
    kept_mass: Tensor
    plain: Tensor  # `kl` before it is multiplied by what `weigh` gives


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


def score_tokens(
    hidden: Tensor, head: Head, ids: Tensor, sampling: Sampling, score: str, weigh: Weigh | None = None
) -> TokenScores:
    """Scores `ids` [N] int64 given the hidden states [N, D] that predict them.

    `score` "full" is log q itself. "sampled" is the log-softmax of logits / temperature over the ids that `sampling` could
    have drawn, plus the token itself; that set is a constant to the gradient. With a plain `sampling` they are equal.
    Given `weigh`, `score` is multiplied by weigh(log q of some rows, which rows), and only its sum has a right gradient.
    """
    value, extras = _Rows.apply(hidden, *head.learnt()[:4], _ScoreRows(ids, sampling, score), weigh)
    return TokenScores(value, *extras.unbind(-1))


def reverse_kl(
    hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher_head: Head, ids: Tensor, teacher_ids: Tensor,
    sampling: Sampling, weigh: Weigh | None = None, measure: Measure | None = None,
) -> TokenKL:  # fmt: skip
    """Returns the reverse KL at N positions, from both models' hidden states ([N, D] and [N, D_T]) and heads.

    The sum runs over the rows that both heads have; each softmax is over its model's own rows. `ids` and `teacher_ids`
    [N] only choose whose log-probs are reported. `weigh` as in `score_tokens`; `measure` takes the place of reverse KL.
    """
    rows = _KLRows(ids, teacher_ids, teacher_hidden, teacher_head, sampling, measure)
    value, extras = _Rows.apply(hidden, *head.learnt()[:4], rows, weigh)
    return TokenKL(value, *extras.unbind(-1))


class _Rows(torch.autograd.Function):
    """One value a row of logits, chunk by chunk: `rows(logits, room, chunk, learns)` gives value and extras, and leaves
    d(value)/d(logits) in `room`.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None,
        rows: "_ScoreRows | _KLRows", weigh: Weigh | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        head = as_used(hidden, Head(weight, bias, scale, cap))
        value = torch.empty(hidden.shape[0], dtype=head.wide, device=hidden.device)
        extras = torch.empty(hidden.shape[0], 5, dtype=head.wide, device=hidden.device)
        if any(ctx.needs_input_grad[1:3]) and weigh is None:
            raise ValueError("the gradient of a head that is trained needs `weigh`: it is made with the logits, once")
        learns = any(ctx.needs_input_grad)
        dhidden = torch.empty(hidden.shape, dtype=head.wide, device=hidden.device) if learns else None
        dweight = torch.zeros_like(weight, dtype=head.wide) if ctx.needs_input_grad[1] else None
        dbias = torch.zeros_like(weight[:, 0], dtype=head.wide) if ctx.needs_input_grad[2] else None
        for chunk, logits, room, slope in product_chunks(hidden, head, rows.one_pass(hidden), rows.beside, learns):
            value[chunk], extras[chunk, :4] = rows(logits, room, chunk, learns)
            extras[chunk, 4] = value[chunk]
            part = torch.ones_like(value[chunk]) if weigh is None else weigh(extras[chunk, 0], chunk)
            value[chunk] *= part
            if slope is not None:
                room.mul_(slope)
            if dhidden is not None:
                dhidden[chunk] = pull_back(room, head.weight, hidden.dtype) * part[:, None]
            if dweight is not None:
                add_outer(dweight, room, hidden[chunk] * part[:, None])
            if dbias is not None:
                add_outer(dbias[:, None], room, part[:, None])
        ctx.mark_non_differentiable(extras)
        ctx.save_for_backward(dhidden, dweight, dbias)
        return value, extras

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, *dhead = ctx.saved_tensors
        total = grad[:1].sum()  # for the head: the gradient that comes in is of a sum, and so the same for all rows
        return dhidden * grad[:, None], *(None if d is None else d.mul_(total) for d in dhead), *(None,) * 4


class _ScoreRows:
    """log q or the sampled score of each row's token. d(score)/d(logits) is (onehot - softmax over the kept) / T."""

    def __init__(self, ids: Tensor, sampling: Sampling, score: str) -> None:
        self.ids, self.sampling = ids, sampling
        self.forbidden = sampling.forbidden if sampling.forbidden is not None and sampling.forbidden.numel() else None
        self.as_sampled, self.beside = score == "sampled", 0
        self.cuts = sampling.truncates or (self.as_sampled and sampling.temperature != 1.0)

    def one_pass(self, hidden: Tensor) -> bool:
        """Whether the kernels make it."""
        return not self.cuts and fused.usable(hidden)

    def __call__(self, logits: Tensor, room: Tensor, chunk: slice, learns: bool) -> tuple[Tensor, Tensor]:
        target, forbidden, one_pass = self.ids[chunk, None], self.forbidden, self.one_pass(room)
        if forbidden is not None:
            aside, own, mine = logits.index_select(-1, forbidden), logits.gather(-1, target), forbidden == target
            logits.index_fill_(-1, forbidden, _NEVER).scatter_(-1, target, own)  # the token itself always counts
        if one_pass:
            top, total, dot = fused.facts(logits)
            chosen = logits.gather(-1, target) - top
        else:
            top, total = fused.plain_facts(logits, room)
            chosen = logits.gather(-1, target)
            dot = (logits * room if self.cuts else logits.mul_(room)).sum(-1, keepdim=True)
        everything, mean = total, dot * (-total).exp()
        added, kept_mass = torch.zeros_like(total), torch.ones_like(total)
        if forbidden is not None:
            aside = (aside - top).masked_fill_(mine, _NEVER)
            everything = torch.logaddexp(total, aside.logsumexp(-1, keepdim=True))
            share, beside = (total - everything).exp(), (aside - everything).exp()
            mean = mean * share + (beside * aside).sum(-1, keepdim=True)
            added = mine.any(-1, keepdim=True).to(total.dtype)
            kept_mass = share - added * (chosen - everything).exp()
        logprob, entropy = (chosen - everything).clamp_max(0.0), everything - mean
        score = (chosen - total).clamp_max(0.0) if self.as_sampled else logprob
        if self.sampling.truncates:
            kept = kept_ids(logits, self.sampling)
            added = 1.0 - kept.gather(-1, target).to(added.dtype)
            kept_mass = (room * kept).sum(-1, keepdim=True) * (-everything).exp()
            if self.as_sampled:
                logits.masked_fill_(~kept.scatter_(-1, target, True), _NEVER)
        temperature = self.sampling.temperature if self.as_sampled else 1.0
        if self.cuts and self.as_sampled:
            logits.div_(temperature)
            total = logits.logsumexp(-1, keepdim=True)
            score = (logits.gather(-1, target) - total).clamp_max(0.0)
            torch.exp(logits, out=room)
        if learns:
            norm = total if self.as_sampled else everything
            if one_pass:
                fused.gradient(logits, top, norm, target, room)
            else:
                room.mul_((-norm).exp().neg_())
                room.scatter_add_(-1, target, torch.ones_like(target, dtype=room.dtype))
                if temperature != 1.0:
                    room.div_(temperature)
            if forbidden is not None and not self.as_sampled:
                beside = torch.where(mine, logprob.expm1(), beside).neg_()
                room.index_copy_(-1, forbidden, beside.to(room.dtype))
        return score[:, 0], torch.cat([logprob, entropy, kept_mass, added], -1)


class _KLRows:
    """Reverse KL of each row. With S the rows both heads have and KL its value,
    d(KL)/d(z_v) = q_v ([v in S] (log q_v - log p_v + 1) - KL - q(S)), which is q (log q - log p - KL) when S is all rows.
    Or what `measure` gives, whose slope g is in d(z_v) = q_v ([v in S] g_v - sum over S of q g).
    """  # fmt: skip

    one_pass = staticmethod(lambda hidden: False)  # the kernels do not make it

    def __init__(
        self, ids: Tensor, teacher_ids: Tensor, teacher_hidden: Tensor, teacher_head: Head, kept_by: Sampling,
        measure: Measure | None,
    ) -> None:  # fmt: skip
        self.ids, self.teacher_ids, self.kept_by, self.measure = ids, teacher_ids, kept_by, measure
        self.teacher_hidden, self.teacher_head = teacher_hidden, teacher_head
        self.rooms: tuple[Tensor, ...] | None = None
        self.beside = 2 if measure is None else 8

    def __call__(self, logits: Tensor, room: Tensor, chunk: slice, learns: bool) -> tuple[Tensor, Tensor]:
        target, shared = self.ids[chunk, None], min(logits.shape[-1], len(self.teacher_head.weight))
        theirs, spare = self._room(logits)
        write_logits(self.teacher_hidden[chunk], self.teacher_head, theirs)
        _, their_total = fused.plain_facts(theirs, spare[:, : theirs.shape[-1]])
        teacher_logprob = (theirs.gather(-1, self.teacher_ids[chunk, None]) - their_total).clamp_max(0.0)
        spare = spare[:, : logits.shape[-1]]
        _, total = fused.plain_facts(logits, room)
        probs = room.mul_((-total).exp())
        kept_mass = torch.ones_like(total)
        if self.kept_by.truncates:
            kept_mass = (probs * kept_ids(logits, self.kept_by)).sum(-1, keepdim=True)
        elif self.kept_by.forbidden is not None:
            kept_mass = kept_mass - probs.index_select(-1, self.kept_by.forbidden).sum(-1, keepdim=True)
        logprob = (logits.gather(-1, target) - total).clamp_max(0.0)
        entropy = total - torch.mul(probs, logits, out=spare).sum(-1, keepdim=True)
        facts = torch.cat([logprob, teacher_logprob, entropy, kept_mass], -1)
        if self.measure is not None:
            shares, log_q = probs[:, :shared], logits[:, :shared].sub_(total)
            value, slope = self.measure(theirs[:, :shared].sub_(their_total), log_q)
            inside = (shares * slope).sum(-1, keepdim=True)
            shares.mul_(slope - inside)
            probs[:, shared:].mul_(-inside)
            return value[:, 0], facts
        ratio = logits.sub_(total - their_total)
        ratio[:, :shared].sub_(theirs[:, :shared])
        ratio[:, shared:] = 0.0
        kl = torch.mul(ratio, probs, out=spare).sum(-1, keepdim=True)
        if learns:
            inside = probs[:, :shared].sum(-1, keepdim=True) if shared < logits.shape[-1] else torch.ones_like(kl)
            probs[:, shared:].mul_(-kl - inside)
            torch.addcmul(spare[:, :shared], probs[:, :shared], 1.0 - inside - kl, out=probs[:, :shared])
        return kl[:, 0], facts

    def _room(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns room for the teacher's logits of as many rows, and for one more number of each id; both are used again."""
        if self.rooms is None:
            sizes = (theirs := len(self.teacher_head.weight)), max(logits.shape[-1], theirs)
            self.rooms = tuple(logits.new_empty(len(logits), size) for size in sizes)  # the first chunk is the largest
        return self.rooms[0][: len(logits)], self.rooms[1][: len(logits)]
