"""The built-in engine: decodes the trainer's own weights, on any device, with nothing to install.

Two loops over one decoder. On a CPU lines that have ended are dropped from the batch, so a token costs what is still
alive. On CUDA a token is a fixed-shape step that reads and writes device memory alone (`_FixedStep`), captured in a CUDA
graph and replayed; the host looks only every few tokens whether anything is still open.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.explained import explained
from poweropd_lite.base.memory import is_out_of_memory
from poweropd_lite.engines import refill
from poweropd_lite.engines.decode import Decoder, FastDecoder, Unlike
from poweropd_lite.engines.draw import next_token
from poweropd_lite.engines.refill import BUCKET, LOOK_EVERY, Ended
from poweropd_lite.kernels import head
from poweropd_lite.kernels.card import unfit
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Draws, Rollout
from poweropd_lite.models.loading import final_hidden
from poweropd_lite.models.student import Student


class LoopEngine:
    """Samples with the student itself. `fixed` and `graphs` are chosen by the device; tests set them."""

    name = "loop"
    sent: Path | None = None  # it decodes the trainer's own weights: nothing is sent
    sent_before: Path | None = None

    def __init__(
        self, student: Student, stop_ids: frozenset[int], say: Callable[[str], None], most_lines: int | None = None,
        kernels: str = "auto",
    ) -> None:  # fmt: skip
        self.student, self.stop_ids, self.say, self.dtype = student, stop_ids, say, student.dtype
        head.switch(kernels)
        self.decoder = make_decoder(student, say, kernels)
        cuda = student.device.type == "cuda"
        self.fixed = self.graphs = cuda and self.decoder.graphs
        self.most_lines = most_lines  # of a batch; fewer after running out of memory

    def sync(self) -> None:
        """Takes over the student's weights as they are now."""
        self.decoder.sync()

    def sample(
        self, prompts: Sequence[tuple[int, ...]], draws: Draws, sampling: Sampling, longest: int
    ) -> list[Rollout]:
        """Returns one rollout a prompt, in order. Out of memory, it goes on with half as many lines at a time and says so."""
        done: list[Rollout] = []
        while len(done) < len(prompts):
            lines = min(len(prompts) - len(done), self.most_lines or len(prompts))
            part = range(len(done), len(done) + lines)
            noise = draws.of(part).uniforms(longest)
            try:
                done += self._sample([prompts[i] for i in part], noise, sampling, longest)
            except (RuntimeError, MemoryError) as error:
                self._fewer(error, lines, max(map(len, prompts)) + longest)
            else:
                continue
            self._free()
        return done

    def stream(
        self, prompts: Sequence[tuple[int, ...]], draws: Draws, sampling: Sampling, longest: int, lines: int
    ) -> Iterator[Ended]:
        """Yields one rollout a prompt as they end, at most `lines` at once: what `sample` returns, but for rounding ties.

        Out of memory, it goes on with half as many lines: what had not ended begins again.
        """
        if not isinstance(self.decoder, FastDecoder):
            yield from refill.in_batches(self.sample, prompts, draws, sampling, longest, lines)
            return
        left, steps = dict.fromkeys(range(len(prompts))), 0  # steps of tries that ran out of memory, too
        while left:
            places, most, before = list(left), min(self.most_lines or lines, lines, len(left)), steps
            asked, width = [prompts[i] for i in places], max(len(prompts[i]) for i in places) + longest
            how = self.stop_ids, most, self.fixed, self.graphs
            try:
                for ended in refill.decode(self.decoder, asked, draws.of(places), sampling, longest, *how):
                    rollouts = [(places[i], rollout) for i, rollout in ended.rollouts]
                    for i, _ in rollouts:
                        del left[i]
                    steps = before + ended.steps
                    yield replace(ended, rollouts=rollouts, steps=steps)
            except (RuntimeError, MemoryError) as error:
                self._fewer(error, most, width)
            else:
                return
            self._free()

    def _fewer(self, error: Exception, lines: int, width: int) -> None:
        """Goes on with half of the lines after running out of memory; raises what is another error, and UserError for one."""
        if not is_out_of_memory(error):
            raise error
        if lines == 1:
            raise UserError(
                f"one completion of {width:,} tokens does not fit in memory ({_memory()}); lower "
                "--max-new-tokens, or in training --teacher-bits to 4, or take a smaller model"
            ) from None
        self.most_lines = lines // 2
        self.say(f"out of memory with {lines} completions at once: from now on {self.most_lines} at a time")

    def _free(self) -> None:
        """Gives back what the failed try had; not in its handler, whose traceback holds its tensors."""
        self.decoder.drop_cache()
        if self.student.device.type == "cuda":
            torch.cuda.empty_cache()

    def release(self) -> None:
        """Frees the KV cache and what was copied of the weights."""
        self.decoder.release()

    close = release

    def _sample(
        self, prompts: Sequence[tuple[int, ...]], noise: Tensor, sampling: Sampling, longest: int
    ) -> list[Rollout]:
        batch = _Batch(prompts, noise, self.stop_ids, self.student.device)
        if self.fixed:
            _decode_fixed(self.decoder, batch, sampling, self.graphs)
        else:
            _decode_dropping(self.decoder, batch, sampling)
        return batch.rollouts(prompts)


class _Batch:
    """Prompts, left-padded so that all lines decode side by side, and what has been drawn for each row so far."""

    def __init__(
        self, prompts: Sequence[tuple[int, ...]], noise: Tensor, stop_ids: frozenset[int], device: torch.device
    ) -> None:
        self.count, self.longest = noise.shape
        self.width = max(map(len, prompts))
        ids = torch.zeros(self.count, self.width, dtype=torch.long)
        valid = torch.zeros(self.count, self.width + self.longest, dtype=torch.bool)
        valid[:, self.width :] = True
        for row, prompt in enumerate(prompts):
            ids[row, self.width - len(prompt) :] = torch.tensor(prompt)
            valid[row, self.width - len(prompt) : self.width] = True
        self.ids, self.valid, self.noise = ids.to(device), valid.to(device), noise.to(device)
        self.next_position = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.stops = torch.tensor(sorted(stop_ids), device=device)
        self.drawn = torch.zeros(self.count, self.longest, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(self.count, self.longest, device=device)
        self.lengths = torch.full((self.count,), self.longest, device=device)
        self.stopped = torch.zeros(self.count, dtype=torch.bool, device=device)

    def rollouts(self, prompts: Sequence[tuple[int, ...]]) -> list[Rollout]:
        """Returns the record of each row."""
        columns = (self.drawn.tolist(), self.logprobs.tolist(), self.lengths.tolist(), self.stopped.tolist())
        return [
            Rollout(tuple(prompt), tuple(ids[:n]), tuple(logprobs[:n]), "stop" if stop else "length")
            for prompt, ids, logprobs, n, stop in zip(prompts, *columns, strict=True)
        ]


@torch.no_grad()
def _decode_dropping(decoder: Decoder, batch: _Batch, sampling: Sampling) -> None:
    """The loop that drops lines that have ended: the host looks at every token."""
    rows = torch.arange(batch.count, device=batch.ids.device)  # which row each line of the cache belongs to
    open_lines = torch.ones_like(rows, dtype=torch.bool)
    position = batch.next_position
    hidden = decoder.prefill(batch.ids, batch.valid[:, : batch.width], batch.width + batch.longest)
    for t in range(batch.longest):
        token, logprob = next_token(hidden, decoder.head, sampling, batch.noise[rows, t])
        batch.drawn[rows, t], batch.logprobs[rows, t] = token, logprob
        ends = torch.isin(token, batch.stops) & open_lines
        batch.lengths[rows[ends]], batch.stopped[rows[ends]] = t + 1, True
        open_lines &= ~ends
        left = int(open_lines.sum())
        if left == 0 or t + 1 == batch.longest:
            return
        if left <= 0.85 * len(rows):  # a copy of the cache is worth it once enough lines are done
            keep = open_lines.nonzero().squeeze(-1)
            decoder.keep(keep)
            rows, token, position, open_lines = rows[keep], token[keep], position[keep], open_lines[keep]
        column = batch.width + t
        hidden = decoder.step(token, position, column, batch.valid[rows, : column + 1])
        position = position + 1


@torch.no_grad()
def _decode_fixed(decoder: Decoder, batch: _Batch, sampling: Sampling, graphs: bool) -> None:
    """The loop of fixed shapes: no line is dropped, and the host waits for the device every LOOK_EVERY tokens at most.

    The first step of a bucket runs as it is, which also warms up its kernels; then the same step is captured and replayed.
    A decoder that needs no mask has one bucket.
    """
    total = batch.width + batch.longest
    step = _FixedStep(decoder, batch, sampling)
    step.draw(decoder.prefill(batch.ids, batch.valid[:, : batch.width], total))
    graph, captured_bucket = None, 0
    for t in range(1, batch.longest):
        if t % LOOK_EVERY == 0 and not step.open.any():
            return
        bucket = min(total, -(-(batch.width + t) // BUCKET) * BUCKET) if decoder.masked else total
        if bucket != captured_bucket:
            if graph is not None:
                torch.cuda.synchronize()  # its memory goes with it
            graph, captured_bucket = None, bucket
            step.run(bucket)
        elif not graphs:
            step.run(bucket)
        else:
            if graph is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    step.run(bucket)
            graph.replay()


class _FixedStep:
    """One token for every line, as a function of tensors on the device alone."""

    def __init__(self, decoder: Decoder, batch: _Batch, sampling: Sampling) -> None:
        self.decoder, self.batch, self.sampling = decoder, batch, sampling
        device = batch.ids.device
        self.open = torch.ones(batch.count, dtype=torch.bool, device=device)
        self.token = torch.zeros(batch.count, dtype=torch.long, device=device)
        self.position = batch.next_position.clone()
        self.t = torch.zeros(1, dtype=torch.long, device=device)  # tokens drawn so far
        self.column = torch.full((1,), batch.width, device=device)  # where the next id goes in the cache
        if decoder.masked:
            self.seen = batch.valid.clone()
            self.seen[:, batch.width :] = False

    def run(self, width: int) -> None:
        """Reads the last tokens, draws the next; attention reads the first `width` columns."""
        mask = self.seen.index_fill_(1, self.column, True)[:, :width] if self.decoder.masked else None
        hidden = self.decoder.step(self.token, self.position, self.column, mask, self.open)
        self.position.add_(1)
        self.column.add_(1)
        self.draw(hidden)

    def draw(self, hidden: Tensor) -> None:
        """Draws a token a line and writes it down."""
        batch = self.batch
        noise = batch.noise.index_select(1, self.t).squeeze(1)
        token, logprob = next_token(hidden, self.decoder.head, self.sampling, noise)
        batch.drawn.index_copy_(1, self.t, token[:, None])
        batch.logprobs.index_copy_(1, self.t, logprob[:, None])
        self.t.add_(1)
        ends = (token[:, None] == batch.stops).any(-1) & self.open
        batch.lengths.copy_(torch.where(ends, self.t, batch.lengths))
        batch.stopped.logical_or_(ends)
        self.open.logical_and_(~ends)
        self.token.copy_(token)


def make_decoder(student: Student, say: Callable[[str], None] | None, kernels: str = "auto") -> Decoder:
    """Returns the first of the fused decoder (on a card), the fast one and the one for any model whose hidden states are the
    model's own on a few ids.

    `say` is told of a choice that is slower. Without it nothing is checked: plan/ asks for the memory of a student without
    numbers, on a CPU.
    """
    slower = None
    if kernels != "off" and say is not None and _is_card(student.device):
        decoder = _fused(student)
        if not isinstance(decoder, str):
            return decoder
        slower = f"rollouts without the kernels for a card, which is slower: {decoder}"
    try:
        plain = FastDecoder(student)
        if say is not None:
            _check(plain, student)
            if slower is not None:
                say(slower)
        return plain
    except Unlike as unlike:
        reason = f"the built-in decoder does not know this model ({unlike})"
    if say is not None:
        say(f"rollouts by transformers' own forward, which is slower, and in evaluation batch by batch: {reason}")
    # Its file imports transformers, which must not come before Unsloth.
    from poweropd_lite.engines.any_model import AnyDecoder

    decoder = AnyDecoder(student)
    if say is not None:
        mend = "take a model of docs/models.md, or type --engine vllm where that is installed"
        with explained("the rollout loop can't decode this student with transformers' own cache", None, mend):
            _check(decoder, student, 0.3)  # in half precision a router may choose other experts
    return decoder


def _is_card(device: torch.device) -> bool:
    return device.type == "cuda"


def _fused(student: Student) -> Decoder | str:
    """Returns the fused decoder, or why there is none: whatever Triton and its compiler meet is no reason not to sample."""
    if why := unfit(student.device):
        return why
    try:
        from poweropd_lite.engines.fused import FusedDecoder

        decoder = FusedDecoder(student)
        _check(decoder, student)
        return decoder
    except Exception as error:
        return " ".join(f"{error if isinstance(error, Unlike) else repr(error)}".split())[:200]


@torch.no_grad()
def _check(decoder: Decoder, student: Student, half: float = 0.03) -> None:
    """Raises Unlike where the decoder's hidden states differ from the model's own. In half precision they may, by `half` of their
    size, or by twice what one rounding of the embeddings changes (0.02 of it in the shapes of Qwen3-0.6B, 0.04 in 1.7B's).
    """
    width, start = 48, 32
    ids = torch.arange(2 * width, device=student.device).view(2, width) * 7 % len(student.head.weight)
    decoder.sync()
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[0, :5] = False  # the first line's prompt is shorter
    positions = valid.cumsum(-1) - 1
    alive = torch.ones(2, dtype=torch.bool, device=student.device)
    ours = [decoder.prefill(ids[:, :start], valid[:, :start], width)]
    for column in range(start, width):
        token, position = ids[:, column], positions[:, column]
        if decoder.masked:
            ours.append(decoder.step(token, position, column, valid[:, : column + 1]))
        else:  # as the fixed-shape loop calls it
            at = torch.full((1,), column, device=student.device)
            ours.append(decoder.step(token, position, at, None, alive))
    if not decoder.masked and isinstance(decoder, FastDecoder):  # and as refill.py does: a column a line
        decoder.make_room(2, width)
        sizes, prompts = valid[:, :start].sum(-1), torch.stack([ids[0, :start].roll(-5), ids[1, :start]])
        ours.append(decoder.begin(torch.arange(2, device=student.device), prompts, sizes))
        for column in range(start, width):
            ours.append(decoder.step(ids[:, column], positions[:, column], positions[:, column], None, alive))
    decoder.release()
    texts = ids[:1, 5:], ids[1:]
    theirs = _own(student, texts)[:, start - width - 1 :]
    gap = _relative(torch.stack(ours, dim=1), theirs.repeat(1, len(ours) // theirs.shape[1], 1))
    allowed = 1e-3
    if student.dtype != torch.float32:
        rounded = student.model.get_input_embeddings().register_forward_hook(partial(_round_once, student.dtype))
        try:
            allowed = max(half, min(0.3, 2 * _relative(_own(student, texts)[:, start - width - 1 :], theirs)))
        finally:
            rounded.remove()
    if not gap < allowed:
        raise Unlike(f"its hidden states differ by {gap:.2g} of their size, and may by {allowed:.2g}")


def _own(student: Student, texts: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the model's own hidden states at the columns that all texts have, counted from their ends."""
    student.model.eval()
    least = min(text.shape[1] for text in texts)
    with student.compute():
        return torch.cat([final_hidden(student.model, text)[:, -least:] for text in texts])


def _round_once(dtype: torch.dtype, module: object, inputs: object, embedded: Tensor) -> Tensor:
    """Moves every number by about as much as `dtype` rounds it, evenly and always in the same way."""
    generator = torch.Generator(embedded.device).manual_seed(0)
    noise = torch.rand(embedded.shape, generator=generator, device=embedded.device) - 0.5
    return (embedded * (1 + noise * torch.finfo(dtype).eps)).to(embedded.dtype)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


def _memory() -> str:
    if not torch.cuda.is_available():
        return "the machine has no more"
    free, total = torch.cuda.mem_get_info()
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
