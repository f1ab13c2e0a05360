"""The rollout-parity guard: is the engine sampling from the weights that are being trained?

Rollouts drawn from the wrong weights train without an error message, and badly: an adapter that the engine ignores, one of
the step before, another temperature, other base weights. The trainer computes the log-prob of every sampled token anyway, so
comparing it with the engine's own is free and done at every step. Every `guard_every` steps, and at the first step of each
sitting, three things are looked at besides:

- the adapter that was sent, tensor by tensor, against the one being trained: exact in every dtype;
- log-probs with the adapter off: once they can be told apart, the engine's must be nearer to those with it on;
- how likely the sampled tokens are at other temperatures than the config's, which an engine's log-probs can't show, for
  they are of temperature 1. The likelihood ratio of a mixture of the others has expectation 1 as long as the config is
  right, however often one looks, so it passes e^20 by chance with a probability of e^-20 (Ville's inequality).

In float32 the limit of the mean gap is a number; in half precision, where engine and trainer round differently, it is a
multiple of the gap at the first step, when the adapter is still zero and nothing can be stale.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from poweropd_lite.base.errors import UserError
from poweropd_lite.kernels.products import Head, logit_chunks
from poweropd_lite.method.batch import MicroBatch, Stops, loss_tokens, micro_batches
from poweropd_lite.method.logprobs import Sampling, kept_ids
from poweropd_lite.method.rollout import Draws, Engine, Rollout
from poweropd_lite.method.update import token_logprobs
from poweropd_lite.models.adapter import ADAPTER
from poweropd_lite.models.student import Student

FLOAT32_LIMIT = 1e-4  # mean |gap| in nats; measured below 1e-6 on the bundled pair
HALF_FIRST_LIMIT = 0.1  # at the first step, in bfloat16 or float16
HALF_FACTOR, HALF_FLOOR = 4.0, 0.02  # later: times the gap of the first step, and never below so many nats
ERRORS = 6.0  # standard errors of the mean gap that are allowed for, in half precision: a few tokens prove nothing
TOLD_APART = 3.0  # the adapter's effect counts once it is this many times the first gap
RATIOS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # of other temperatures to the config's
_ONE = RATIOS.index(1.0)
SURE = 20.0  # log of how much likelier another temperature must be; chance alone gets there once in e^20 runs
TELLING = 3.0  # log-likelihood between the grid's temperatures, below which an estimate would say nothing
IMPOSSIBLE_SHARE = 0.01  # of tokens outside top-k and top-p, which rounding alone stays far below


class RolloutMismatch(UserError):
    """The engine samples from something other than the weights that are trained; these are as they were before the step."""


class Guard:
    """Compares an engine with the trainer. `first_gap`, of the run's first step, is kept in its checkpoints."""

    def __init__(
        self, engine: Engine, student: Student, sampling: Sampling, stops: Stops, every: int, first_gap: float | None
    ) -> None:
        self.engine, self.student, self.sampling, self.stops, self.every = engine, student, sampling, stops, every
        self.first_gap, self.fully_checked = first_gap, False
        self.evidence = torch.zeros(len(RATIOS), dtype=torch.float64)  # log-likelihood against the config's temperature

    @property
    def limit(self) -> float:
        """The largest mean gap that passes, nats."""
        if self.student.dtype == torch.float32:
            return FLOAT32_LIMIT
        return HALF_FIRST_LIMIT if self.first_gap is None else max(HALF_FACTOR * self.first_gap, HALF_FLOOR)

    def passes(self, gap: Tensor) -> bool:
        """Whether these gaps [N] may be rounding."""
        allowed = 0.0
        if self.student.dtype != torch.float32:
            allowed = ERRORS * gap.std(correction=0).item() / len(gap) ** 0.5
        return gap.mean().item() - allowed <= self.limit

    def check(
        self, step: int, rollouts: Sequence[Rollout], log_q: Tensor, engine: Tensor, token_budget: int
    ) -> dict[str, float]:
        """Returns the metrics of step `step` (from 0), given the trainer's and the engine's log-probs [N] of its tokens, on the host.

        Passes of its own are in micro-batches of `token_budget` tokens.
        Raises RolloutMismatch, naming the fault with its numbers, if the engine samples from anything but the trained weights.
        """
        tokens = [loss_tokens(rollout, self.stops) for rollout in rollouts]  # a final stop may stand under another id
        as_sampled = [i < t.sampled for t in tokens for i in range(len(t.student))]
        compared = torch.tensor(as_sampled)
        log_q, engine = log_q[compared], engine[compared]
        if not log_q.numel() or not log_q.isfinite().all():
            return {}  # nothing to compare; weights that gave NaN drop the step
        if not engine.isfinite().all():
            lost = int((~engine.isfinite()).sum())
            raise self._mismatch(
                f"at step {step + 1} the {self.engine.name} engine gave no log-prob for {lost:,} of {len(engine):,} tokens "
                "(NaN or infinity)"
            )
        gap = (log_q - engine).abs()
        metrics = {"parity/gap": gap.mean().item(), "parity/gap_max": gap.max().item()}
        due = step % self.every == 0
        full = due or not self.fully_checked
        if full:
            self._same_dtype()
            self._same_adapter(step)
        if full or not self.passes(gap):
            batches = micro_batches(rollouts, token_budget, Stops("mask"), self.student.device)
            facts = self._look_closer(step, batches, log_q, engine)
            metrics |= facts if due else {}  # that a run was resumed shows in no metric
        if self.first_gap is None:
            self.first_gap = metrics["parity/gap"]
        self.fully_checked = True
        return metrics

    def _look_closer(self, step: int, batches: list[MicroBatch], log_q: Tensor, engine: Tensor) -> dict[str, float]:
        gaps = (engine - log_q).abs()
        gap = gaps.mean().item()
        if not self.passes(gaps):
            raise self._mismatch(
                f"at step {step + 1} the {self.engine.name} engine's log-probs of {len(engine):,} sampled tokens are {gap:.3g} "
                f"nats off the trainer's on average (at most {self.limit:.3g} passes). {self._whose(batches, engine, gap)}"
            )
        metrics = self._temperature(step, batches)
        if self._adapter_is_zero():
            return metrics
        with self.student.without_adapter():
            off = self._log_q(batches, len(engine))
        effect, gap_off = (log_q - off).abs().mean().item(), (engine - off).abs().mean().item()
        floor = 0.0 if self.student.dtype == torch.float32 else HALF_FLOOR
        if effect > max(TOLD_APART * (self.first_gap or 0.0), floor) and gap_off < gap / 2:
            raise self._mismatch(
                f"at step {step + 1} the {self.engine.name} engine's log-probs are nearer to those of the base without the "
                f"adapter ({gap_off:.3g} nats) than with it ({gap:.3g}): the engine ignores the adapter"
            )
        return metrics | {"parity/adapter_effect": effect}

    def _whose(self, batches: list[MicroBatch], engine: Tensor, gap: float) -> str:
        """Says which weights the engine's log-probs do belong to."""
        if not self.student.has_adapter:
            return "It samples from other weights than are trained"
        with self.student.without_adapter():
            off = (engine - self._log_q(batches, len(engine))).abs().mean().item()
        if off < gap / 3 and off <= 3 * self.limit:
            return (
                f"They are those of the base without the adapter ({off:.3g} nats off): the engine ignores the adapter"
            )
        before = self.engine.sent_before
        if before is not None:
            with self._adapter_of(before):
                stale = (engine - self._log_q(batches, len(engine))).abs().mean().item()
            if stale < gap / 3 and stale <= 3 * self.limit:
                return f"They are those of the adapter of the step before ({stale:.3g} nats off): the engine's adapter is stale"
        nor = "" if before is None else " nor of the adapter of the step before"
        return (
            f"They are not those of the base without the adapter ({off:.3g} nats off){nor}: the engine has other base weights "
            "than the trainer, or reads other prompts"
        )

    @torch.no_grad()
    def _temperature(self, step: int, batches: list[MicroBatch]) -> dict[str, float]:
        """Estimates how the tokens were really drawn; raises UserError for another temperature, top-k or top-p."""
        wanted = self.sampling
        grid = [wanted.temperature * ratio for ratio in RATIOS]
        parts = []
        for batch in batches:
            hidden = batch.select(self.student.hidden(batch.ids))
            parts.append(tempered_logprobs(hidden, self.student.head, batch.student_ids, wanted, grid))
        logprobs = torch.cat(parts).double()
        possible = logprobs[:, _ONE].isfinite()  # rounding may put a token just outside top-k or top-p
        # A thousandth of chance in the other temperatures, or one token outside their top-p would rule them out for ever.
        floor = math.log(1e-3 / len(self.student.head.weight))
        others = torch.logaddexp(logprobs + math.log1p(-1e-3), torch.full_like(logprobs, floor))
        others[:, _ONE] = logprobs[:, _ONE]
        here = (others - logprobs[:, _ONE, None])[possible].sum(0).cpu()
        self.evidence = self.evidence + here
        others = torch.cat([self.evidence[:_ONE], self.evidence[_ONE + 1 :]])
        odds = (others.logsumexp(0) - math.log(len(others))).item()
        if odds > SURE:
            estimate = _peak(grid, self.evidence.tolist())
            raise self._mismatch(
                f"at step {step + 1} the {self.engine.name} engine's tokens look drawn at temperature {estimate:.2f}, not "
                f"{wanted.temperature:g} (they are e^{odds:.0f} times likelier so)"
            )
        if not (share := 1.0 - possible.double().mean().item()) <= IMPOSSIBLE_SHARE:
            raise self._mismatch(
                f"at step {step + 1} {share:.1%} of the {self.engine.name} engine's tokens could not have been drawn at "
                f"temperature {wanted.temperature:g} with top-k {wanted.top_k} and top-p {wanted.top_p:g}"
            )
        # Of this check alone: that a run was resumed shows in no metric.
        return {"parity/temperature": _peak(grid, here.tolist())} if here.min() < -TELLING else {}

    def _log_q(self, batches: list[MicroBatch], count: int) -> Tensor:
        return token_logprobs(self.student, batches, count, "student").cpu()

    def _mismatch(self, found: str) -> RolloutMismatch:
        other = "" if self.engine.name == "loop" else " --engine loop to sample with the trainer's own weights, or"
        return RolloutMismatch(
            f"rollouts are not from the weights that are trained: {found}.\nNothing was learnt from this step; the weights "
            f"before it are saved, and --resume goes on from them. Type{other} python -m poweropd_lite.doctor --env, and report "
            "what it prints with this message"
        )

    def _same_dtype(self) -> None:
        if self.engine.dtype != self.student.dtype:
            ours, theirs = (str(d).removeprefix("torch.") for d in (self.student.dtype, self.engine.dtype))
            raise self._mismatch(f"the {self.engine.name} engine computes in {theirs}, the trainer in {ours}")

    def _same_adapter(self, step: int) -> None:
        """Compares the adapter that was sent with the one being trained, bit for bit."""
        sent = self.engine.sent
        if sent is None:
            return
        ours = {_saved_name(name): p for name, p in self.student.trainable().items()}
        theirs = _read(sent)
        wrong = [n for n, p in ours.items() if n not in theirs or not torch.equal(theirs[n].to(p.device), p.detach())]
        if wrong or set(theirs) - set(ours):
            raise self._mismatch(
                f"the adapter sent to {self.engine.name} before step {step + 1} is not the one being trained: {len(wrong)} of "
                f"{len(ours)} tensors differ ({wrong[0] if wrong else 'some are extra'})"
            )

    def _adapter_is_zero(self) -> bool:
        """Whether the adapter changes nothing yet, or there is none."""
        return not any(p.any() for name, p in self.student.trainable().items() if "lora_B" in name)

    @contextmanager
    def _adapter_of(self, folder: Path) -> Iterator[None]:
        """The student with the adapter that was saved in `folder`, inside the block."""
        saved, ours = _read(folder), self.student.trainable()
        kept = {name: p.detach().clone() for name, p in ours.items()}
        try:
            with torch.no_grad():
                for name, p in ours.items():
                    p.copy_(saved[_saved_name(name)])
            yield
        finally:
            with torch.no_grad():
                for name, p in ours.items():
                    p.copy_(kept[name])


def sample_whole(
    engine: Engine, prompts: Sequence[tuple[int, ...]], draws: Draws, sampling: Sampling, longest: int
) -> list[Rollout]:
    """Returns the engine's rollouts, one whole one a prompt, in order; raises UserError if it gave anything less."""
    rollouts = engine.sample(prompts, draws, sampling, longest)
    faults = [] if len(rollouts) == len(prompts) else [f"{len(rollouts)} completions"]
    for row, (prompt, rollout) in enumerate(zip(prompts, rollouts, strict=False), 1):
        tokens = len(rollout.completion_ids)
        if tuple(rollout.prompt_ids) != tuple(prompt):
            faults.append(f"completion {row} of another prompt")
        elif not 0 < tokens <= longest or len(rollout.logprobs) != tokens:
            faults.append(f"completion {row} of {tokens} tokens and {len(rollout.logprobs)} log-probs")
        elif rollout.finish != "stop" and tokens < longest:
            faults.append(f"completion {row} of {tokens} tokens that neither stopped nor is of {longest}")
    if faults:
        other = "" if engine.name == "loop" else ", or type --engine loop"
        raise UserError(
            f"the {engine.name} engine was asked for {len(prompts)} completions and gave {faults[0]}; nothing was learnt from "
            f"them, and what was saved stands: go on with --resume{other}"
        )
    return rollouts


def _saved_name(name: str) -> str:
    return name.replace(f".{ADAPTER}.", ".").removesuffix(f".{ADAPTER}")


@torch.no_grad()
def tempered_logprobs(
    hidden: Tensor, head: Head, ids: Tensor, sampling: Sampling, temperatures: Sequence[float]
) -> Tensor:
    """Returns the log-probs of `ids` [N] under `sampling` with each of K temperatures in place of its own, [N, K].

    `hidden` [N, D] predict them. -inf where top-k or top-p would have left the id out at that temperature.
    """
    out = torch.empty(hidden.shape[0], len(temperatures), device=hidden.device)
    for chunk, logits in logit_chunks(hidden, head):
        for k, temperature in enumerate(temperatures):
            at = replace(sampling, temperature=temperature)
            scaled = logits / temperature
            if not at.is_plain:
                scaled.masked_fill_(~kept_ids(logits, at), -torch.inf)
            own = scaled.gather(-1, ids[chunk, None]) - scaled.logsumexp(-1, keepdim=True)
            out[chunk, k] = own.squeeze(-1).to(out.dtype)
    return out


def _peak(grid: list[float], evidence: list[float]) -> float:
    """Returns where the parabola through the largest of `evidence` and its neighbours, over log temperature, peaks."""
    best = max(range(len(grid)), key=evidence.__getitem__)
    if best in (0, len(grid) - 1) or not all(map(math.isfinite, evidence[best - 1 : best + 2])):
        return grid[best]
    (x0, x1, x2), (y0, y1, y2) = (map(math.log, grid[best - 1 : best + 2]), evidence[best - 1 : best + 2])
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curve = (right - left) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - left / (2 * curve)) if curve < 0 else grid[best]


def _read(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")
