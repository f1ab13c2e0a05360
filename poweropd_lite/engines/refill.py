"""Many completions through few lines: where one has ended the next prompt begins, so nothing waits for the longest of a batch.

A line of the cache holds one completion at a time, from its first column on: the column of a line's next id is its position.
All that a step reads and writes is device memory, so on CUDA it is captured in a graph and replayed, whatever begins and
ends between two steps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poweropd_lite.engines.decode import FastDecoder
from poweropd_lite.engines.draw import next_token
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Draws, Rollout

LOOK_EVERY = 16  # steps between two looks of the host, in the fixed-shape loop
BUCKET = 256  # columns that attention reads grow in steps of this there, if it needs a mask: one graph a bucket
FREE = 1 / 16  # of the lines have ended: then prompts begin there
PROMPT_TOKENS = 8192  # of prompts read at once


@dataclass(frozen=True)
class Ended:
    """What a stream of completions says from time to time."""

    rollouts: list[tuple[int, Rollout]]  # those that ended since, each with its prompt's place among those asked for
    waiting: int  # prompts that have not begun
    steps: int = 0  # tokens that a line could have had so far
    youngest: int = 0  # tokens of the open completion that has the fewest


def in_batches(
    sample: Callable[..., list[Rollout]], prompts: Sequence[tuple[int, ...]], draws: Draws, sampling: Sampling,
    longest: int, size: int,
) -> Iterator[Ended]:  # fmt: skip
    """Yields every prompt's completion batch by batch, longest prompts first: for what can't begin a prompt in the middle."""
    order = _longest_first(prompts)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        rollouts = sample([prompts[i] for i in part], draws.of(part), sampling, longest)
        yield Ended(list(zip(part, rollouts, strict=True)), len(order) - start - len(part))


@torch.no_grad()
def decode(
    decoder: FastDecoder, prompts: Sequence[tuple[int, ...]], draws: Draws, sampling: Sampling, longest: int,
    stop_ids: frozenset[int], most: int, fixed: bool, graphs: bool,
) -> Iterator[Ended]:  # fmt: skip
    """Yields every prompt's completion as it ends, longest prompts first, at most `most` at once.

    `fixed`: no line is dropped at the end, and the host looks every LOOK_EVERY steps; with `graphs` they are replayed.
    """
    order = _longest_first(prompts)
    lines = _Lines(decoder, min(most, len(order)), len(prompts[order[0]]), longest, sampling, stop_ids)
    owners: list[int | None] = [None] * lines.count  # of each line: whose completion it holds
    begun, steps, every = 0, 0, LOOK_EVERY if fixed else 1
    width = 0  # the longest text of an open line
    while True:
        free = [line for line, owner in enumerate(owners) if owner is None]
        if begun < len(order):
            if len(free) >= math.ceil(FREE * lines.count):
                new = order[begun : begun + len(free)]
                begun += len(new)
                width = max(width, len(prompts[new[0]]) + 1)
                for part in _parts(new, prompts):
                    rows, free = free[: len(part)], free[len(part) :]
                    lines.begin(rows, [prompts[i] for i in part], draws.of(part).uniforms(longest))
                    for row, i in zip(rows, part, strict=True):
                        owners[row] = i
        elif len(free) == lines.count:
            return
        elif not fixed and len(free) >= 0.15 * lines.count:  # a copy of the cache is worth it
            kept = [line for line, owner in enumerate(owners) if owner is not None]
            lines.keep(kept)
            owners = [owners[line] for line in kept]
        lines.run(every, width + every - 1, fixed, graphs)
        steps += every
        opened, tokens = lines.open.tolist(), lines.drawn.tolist()
        ended = {line: owner for line, owner in enumerate(owners) if owner is not None and not opened[line]}
        rollouts = []
        for line, ids, logprobs, stopped in lines.read(list(ended), [tokens[line] for line in ended]):
            place, owners[line] = ended[line], None
            rollouts.append((place, Rollout(tuple(prompts[place]), ids, logprobs, "stop" if stopped else "length")))
        still = [(i, tokens[line]) for line, i in enumerate(owners) if i is not None]
        width = max((len(prompts[i]) + n for i, n in still), default=0)
        if rollouts or steps % LOOK_EVERY == 0:
            yield Ended(rollouts, len(order) - begun, steps, min((n for _, n in still), default=0))


class _Lines:
    """The lines of a cache and what has been drawn in each, on the device. A line that is not open stands still."""

    def __init__(
        self, decoder: FastDecoder, count: int, width: int, longest: int, sampling: Sampling, stop_ids: frozenset[int]
    ) -> None:
        self.decoder, self.sampling, self.longest = decoder, sampling, longest
        self.device = device = decoder.student.device
        decoder.make_room(count, width + longest)
        self.columns = torch.arange(width + longest, device=device)
        self.stops = torch.tensor(sorted(stop_ids), device=device)
        self.token, self.position, self.drawn = torch.zeros(3, count, dtype=torch.long, device=device)
        self.open, self.stopped = torch.zeros(2, count, dtype=torch.bool, device=device)
        # One column more, where lines that have all their tokens read and write.
        self.noise = torch.zeros(count, longest + 1, dtype=torch.float64, device=device)
        self.ids = torch.zeros(count, longest + 1, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(count, longest + 1, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.width = 0  # columns that the graph's attention reads

    @property
    def count(self) -> int:
        """How many lines there are."""
        return len(self.token)

    def begin(self, rows: list[int], prompts: list[tuple[int, ...]], noise: Tensor) -> None:
        """Reads prompts into lines that are free, and draws the first token of each."""
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.zeros(len(prompts), int(sizes.max()), dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        at, sizes = torch.tensor(rows, device=self.device), sizes.to(self.device)
        hidden = self.decoder.begin(at, ids.to(self.device), sizes)
        self.noise[at, : self.longest] = noise.to(self.device)
        self.position[at], self.drawn[at], self.open[at], self.stopped[at] = sizes, 0, True, False
        token, logprob = next_token(hidden, self.decoder.head, self.sampling, self.noise[at, 0])
        self.ids[at, 0], self.logprobs[at, 0], self.token[at], self.drawn[at] = token, logprob, token, 1
        self.stopped[at] = torch.isin(token, self.stops)
        self.open[at] = ~self.stopped[at] & (self.longest > 1)

    def run(self, steps: int, width: int, fixed: bool, graphs: bool) -> None:
        """Takes some steps, in which attention reads at most `width` columns."""
        if not fixed:
            for _ in range(steps):
                self.step(width)
            return
        whole = len(self.columns)
        width = min(whole, -(-width // BUCKET) * BUCKET) if self.decoder.masked else whole
        if not self.width / 2 <= width <= self.width:
            if self.graph is not None:
                torch.cuda.synchronize()  # its memory goes with it
            self.graph, self.width = None, width
            self.step(width)  # as it is, which also warms up its kernels
            steps -= 1
        for _ in range(steps):
            if graphs and self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.step(self.width)
            if self.graph is None:
                self.step(self.width)
            else:
                self.graph.replay()

    def step(self, width: int) -> None:
        """Reads the last token of every line and draws the next."""
        mask = self.columns[:width] <= self.position[:, None] if self.decoder.masked else None
        hidden = self.decoder.step(self.token, self.position, self.position, mask, self.open)
        self.position.add_(self.open)
        at = self.drawn[:, None]
        noise = self.noise.gather(1, at).squeeze(1)
        token, logprob = next_token(hidden, self.decoder.head, self.sampling, noise)
        self.ids.scatter_(1, at, token[:, None])
        self.logprobs.scatter_(1, at, logprob[:, None])
        self.drawn.add_(self.open)
        stops = (token[:, None] == self.stops).any(-1) & self.open
        self.stopped.logical_or_(stops)
        self.open.logical_and_(~stops & (self.drawn < self.longest))
        self.token.copy_(token)

    def keep(self, kept: list[int]) -> None:
        """Drops the other lines."""
        at = torch.tensor(kept, device=self.device)
        self.decoder.keep(at)
        for name in ("token", "position", "drawn", "open", "stopped", "noise", "ids", "logprobs"):
            setattr(self, name, getattr(self, name)[at])

    def read(
        self, rows: list[int], tokens: list[int]
    ) -> Iterator[tuple[int, tuple[int, ...], tuple[float, ...], bool]]:
        """Yields of each row itself, its ids, their log-probs, and whether the last is a stop id."""
        if rows:
            at = torch.tensor(rows, device=self.device)
            parts = (self.ids[at].tolist(), self.logprobs[at].tolist(), self.stopped[at].tolist())
            for row, n, ids, logprobs, stopped in zip(rows, tokens, *parts, strict=True):
                yield row, tuple(ids[:n]), tuple(logprobs[:n]), stopped


def _longest_first(prompts: Sequence[tuple[int, ...]]) -> list[int]:
    return sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))


def _parts(new: list[int], prompts: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Yields prompts of falling length in parts of at most PROMPT_TOKENS, padding counted, or of one."""
    while new:
        size = max(1, PROMPT_TOKENS // len(prompts[new[0]]))
        yield new[:size]
        new = new[size:]
