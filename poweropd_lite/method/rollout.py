"""What a rollout is, which random numbers it is drawn with, and what every engine can do.

Whatever the engine, a row's randomness is a function of (seed, purpose, step, row), so, up to rounding, a completion does
not depend on how the batch was cut.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from poweropd_lite.method.logprobs import Sampling

# A row's stream of random numbers is keyed by what it is for, so that evaluation never shares one with training.
TRAINING, EVALUATION, CLOSENESS, LOSS = 0, 1, 2, 3


@dataclass(frozen=True)
class Rollout:
    """One prompt and one sampled completion."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]  # at least one; the stop id, if one was sampled, is the last
    logprobs: tuple[float, ...]  # the engine's, of each completion id: temperature 1, untruncated
    finish: str  # "stop": the last id is a stop id; "length": truncated at the longest completion
    teacher_prompt_ids: tuple[int, ...] = ()  # what the teacher reads in place of the prompt; (): the same

    def __len__(self) -> int:  # of what the one reads that reads more
        return max(len(self.prompt_ids), len(self.teacher_prompt_ids)) + len(self.completion_ids)


@dataclass(frozen=True)
class Draws:
    """Names the random numbers of some rows: everything but the weights that a completion depends on."""

    seed: int
    purpose: int  # TRAINING, EVALUATION, CLOSENESS or LOSS
    step: int | tuple[int, ...]  # of all rows, or one a row
    rows: tuple[int, ...]  # one a prompt

    def of(self, places: Sequence[int]) -> "Draws":
        """Returns those of the rows at some places."""
        step = self.step if isinstance(self.step, int) else tuple(self.step[i] for i in places)
        return Draws(self.seed, self.purpose, step, tuple(self.rows[i] for i in places))

    def uniforms(self, length: int) -> Tensor:
        """Returns numbers in [0, 1), [rows, length] float64; a longer `length` only adds columns."""
        return torch.from_numpy(np.stack([generator.random(length) for generator in self._generators()]))

    def request_seeds(self) -> list[int]:
        """Returns one seed a row, for an engine that has a generator of its own."""
        return [int(generator.integers(2**62)) for generator in self._generators()]

    def _generators(self) -> Iterator[np.random.Generator]:
        steps = (self.step,) * len(self.rows) if isinstance(self.step, int) else self.step
        for step, row in zip(steps, self.rows, strict=True):
            yield np.random.default_rng([self.seed, self.purpose, step, row])


class Engine(Protocol):
    """What samples. `sync` brings the student's weights of this moment to it; `sample` uses those of the last sync."""

    name: str
    dtype: torch.dtype  # what it computes in
    sent: Path | None  # the adapter that it was sent at the last sync, as PEFT saves it, if it is sent one
    sent_before: Path | None  # the one before

    def sync(self) -> None:
        """Takes over the student's weights as they are now."""

    def sample(
        self, prompts: Sequence[tuple[int, ...]], draws: Draws, sampling: Sampling, longest: int
    ) -> list[Rollout]:
        """Returns one rollout of at most `longest` new tokens for each prompt, in order."""

    def release(self) -> None:
        """Gives back what memory it can until the next sync: the teacher and the update come next."""

    def close(self) -> None:
        """Ends it."""
