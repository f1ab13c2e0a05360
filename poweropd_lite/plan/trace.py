"""What the program itself allocates, found by running it: the real forward, loss and backward on tensors that have shapes and
no memory.

torch's FakeTensorMode stands in for the numbers alone; transformers, PEFT, checkpointing, autocast, the chunked log-probs and
the decoder are those of a run, so a plan can't forget what they keep. `Live` adds up the storages that are alive at once.

The fake device is a CPU, whatever is planned for: where a card's kernels keep other things (a head's copy in half
precision), memory.py adds them. Left out: kernels' own workspaces and the allocator's rounding.
"""

import copy
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from poweropd_lite.base.config import PLAIN_BUDGET, Config, marked
from poweropd_lite.base.teachers import SELF, files_of, files_role
from poweropd_lite.checks.reward import reward_settings
from poweropd_lite.engines.draw import next_token
from poweropd_lite.engines.loop import make_decoder
from poweropd_lite.kernels.head import target_logprobs
from poweropd_lite.kernels.products import Head
from poweropd_lite.method.logprobs import Sampling, reverse_kl, score_tokens
from poweropd_lite.models.adapter import with_adapter
from poweropd_lite.models.loading import final_hidden, head_of, quiet_dropout
from poweropd_lite.models.shape import Shape, empty_model, read_config, shape_of
from poweropd_lite.models.streamed import before_layers, decoder_layers, layer_by_layer
from poweropd_lite.models.student import Student, recompute
from poweropd_lite.plan.kept import kept_less
from poweropd_lite.rewards.table import reads_rows, reward_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_MADE: dict[tuple, Any] = {}  # by all that a trace depends on


class Traces:
    """The traces of a pair's two models, each made once in a process: a search for a config that fits asks for the same
    again and again, and so does a notebook's next run.

    A micro-batch of more than PLAIN_BUDGET tokens is traced with fewer lines of its width, and its bytes taken in proportion.
    It errs on the large side: at any moment there are a + b lines bytes, with a >= 0, and so the peak over the lines falls as
    lines are added. Where every weight is trained a is large, the half precision copies of weights, and twice as many are traced.
    """

    def __init__(self, student: "PretrainedConfig", teacher: "PretrainedConfig", dtype: torch.dtype) -> None:
        self.student_config, self.teacher_config, self.dtype = student, teacher, dtype

    def student(
        self, config: Config, teacher_head: tuple[int, int], lines: int, width: int, compiled: bool = False
    ) -> "Traced":
        read = teacher_head if reads_rows(config) else (1, 1)
        few = min(lines, max(1, (2 if config.full_finetune else 1) * PLAIN_BUDGET // width))
        traced = self._once(trace_student, self.student_config, config, self.dtype, read, few, width)
        update = math.ceil(traced.update * lines / few)
        if compiled and not config.recomputes:
            update -= lines * width * self._once(trace_kept_less, self.student_config, config, self.dtype)
        return replace(traced, update=update)

    def teacher(self, config: Config, dtype: torch.dtype, lines: int, width: int) -> tuple[Shape, int]:
        few = min(lines, max(1, PLAIN_BUDGET // width))
        shape, scoring = self._once(trace_teacher, self.teacher_config, config, dtype, few, width)
        return shape, math.ceil(scoring * lines / few)

    def streamed(self, config: Config, dtype: torch.dtype, lines: int, width: int) -> tuple[int, int]:
        few = min(lines, max(1, PLAIN_BUDGET // width))
        sizes = self._once(trace_streamed, self.teacher_config, config, dtype, few, width)
        scoring, waiting = (math.ceil(size * lines / few) for size in sizes)
        return scoring, waiting

    def rollout(self, config: Config, lines: int, prompt: int, new: int) -> int:
        return self._once(trace_rollout, self.student_config, config, self.dtype, lines, prompt, new)

    def _once(self, trace: Callable, model_config: "PretrainedConfig", config: Config, *rest: Any) -> Any:
        settings = (_rows_of(config), *(getattr(config, name) for name in sorted(marked("traced"))))
        key = (trace, model_config.name_or_path, model_config.to_json_string(), *settings, *rest)
        if key not in _MADE:  # a copy: building a model writes into its config, which would be another key then
            logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # it raises what it logs, too
            _MADE[key] = trace(copy.deepcopy(model_config), config, *rest)
        return _MADE[key]


def _rows_of(config: Config) -> str | None:
    """Which reward reads whole distributions and the teacher's head; None: all others look alike here."""
    return config.reward if reads_rows(config) else None


def traces_of(config: Config, dtype: torch.dtype) -> Traces:
    """Returns the traces of a run's pair, none made yet; raises UserError for a model whose config can't be read."""
    student = read_config(config.student, "student", config.trust_remote_code)
    other = config.teacher != SELF
    theirs = files_of(config, "teacher")
    teacher = read_config(theirs, files_role(config), config.trust_remote_code) if other else copy.deepcopy(student)
    return Traces(student, teacher, dtype)


class Live(TorchDispatchMode):
    """Counts the bytes of all storages made inside it: `now` those that are alive, `peak` the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:  # asked twice for every tensor made
            return args[0].fake_device
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    @contextmanager
    def watch(self) -> Iterator[list[int]]:
        """Gives a list that holds, after the block, the most bytes that were alive in it beyond those at its start."""
        found: list[int] = []
        start = self.peak = self.now
        yield found
        found.append(self.peak - start)


@dataclass(frozen=True)
class Traced:
    """A student as it was traced."""

    shape: Shape  # of the base
    trained: int  # elements
    adapter: int  # elements of LoRA's matrices among them
    update: int  # bytes: activations, log-probs and gradients of activations at their most, without the trained weights' gradients


def trace_student(
    model_config: "PretrainedConfig", config: Config, dtype: torch.dtype, head: tuple[int, int], lines: int, width: int
) -> Traced:
    """Runs one micro-batch of `lines` rollouts of `width` tokens, all of them in the loss, through forward, loss and backward."""
    shape = shape_of(empty_model(model_config, dtype, config.trust_remote_code))
    with fake_student(model_config, config, dtype) as (student, live):
        trainable = student.trainable()
        trained = sum(p.numel() for p in trainable.values())
        adapter = sum(p.numel() for name, p in trainable.items() if "lora_" in name)
        for p in trainable.values():  # there before the backward, so that they are not counted as activations
            p.grad = torch.zeros_like(p)
        student.hidden(torch.zeros(1, 2, dtype=torch.long))  # makes what a model makes once
        # The teacher's part of full_kl, of a `head` (V, D), is counted with the teacher.
        said = torch.empty(lines * width, head[1], dtype=dtype), Head(torch.empty(head, dtype=dtype))
        with live.watch() as found:
            _backward(student, said, config, lines, width)
        return Traced(shape, trained, adapter, found[0])


def _backward(student: Student, teacher: tuple[torch.Tensor, Head], config: Config, lines: int, width: int) -> None:
    """A micro-batch's forward, loss and backward; `teacher` is its hidden states and its head, which full_kl reads."""
    ids, rows = torch.zeros(lines, width, dtype=torch.long), torch.zeros(lines * width, dtype=torch.long)
    hidden, sampling = student.hidden(ids)[rows, rows], _sampling(config)
    entry = reward_of(config.reward)
    if entry.pay is None:
        measure = entry.compare and partial(entry.compare, **reward_settings(config))
        loss = reverse_kl(hidden, student.head, *teacher, rows, rows, sampling, _paid, measure).kl.sum()
    else:
        if config.baseline == "own":
            with torch.no_grad():
                reverse_kl(hidden.detach(), student.head, *teacher, rows, rows, sampling, measure=_mean)
        loss = score_tokens(hidden, student.head, rows, sampling, config.score, _paid).score.sum()
    del hidden
    loss.backward()


def _mean(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    paid = log_q.exp() * (log_p - log_q)  # as any reward's mean over the vocabulary
    return paid.sum(-1, keepdim=True), paid


def _paid(log_q: torch.Tensor, rows: slice) -> torch.Tensor:
    return log_q  # any number a token: it is known with the log-prob, as a reward is


def trace_kept_less(model_config: "PretrainedConfig", config: Config, dtype: torch.dtype) -> int:
    """Returns the bytes a token that compiled layers keep less for the backward than those that trace_student runs."""
    with fake_student(model_config, config, dtype) as (student, _):
        return kept_less(student)


def trace_teacher(
    model_config: "PretrainedConfig", config: Config, dtype: torch.dtype, lines: int, width: int
) -> tuple[Shape, int]:
    """Returns the teacher's shape and the most bytes that scoring a micro-batch needs beside the weights."""
    model = empty_model(model_config, dtype, config.trust_remote_code)
    shape = shape_of(model)
    model.requires_grad_(False).eval()  # before it is given tensors: those that are trained are float32
    with _fake() as live, torch.no_grad():
        _materialise(model)
        final_hidden(model, torch.zeros(1, 2, dtype=torch.long))
        ids, rows = torch.zeros(lines, width, dtype=torch.long), torch.zeros(lines * width, dtype=torch.long)
        with live.watch() as found:
            hidden = final_hidden(model, ids)[rows, rows]
            target_logprobs(hidden, head_of(model), rows)
    return shape, found[0]


def trace_streamed(
    model_config: "PretrainedConfig", config: Config, dtype: torch.dtype, lines: int, width: int
) -> tuple[int, int]:
    """Returns the most bytes that scoring one micro-batch needs beside the weights of a teacher whose layers are streamed, and
    those of one more that waits between two layers: hidden states, rotary positions, masks.
    """
    model = empty_model(model_config, dtype, config.trust_remote_code)
    model.requires_grad_(False).eval()
    layers = list(decoder_layers(model) or ())
    with FakeTensorMode(), Live() as live, torch.no_grad():
        _materialise(model)
        final_hidden(model, torch.zeros(1, 2, dtype=torch.long))
        ids, rows = torch.zeros(lines, width, dtype=torch.long), torch.zeros(lines * width, dtype=torch.long)
        with live.watch() as found:
            hidden = next(layer_by_layer(model, [ids], layers, lambda i: None))[rows, rows]
            target_logprobs(hidden, head_of(model), rows)
        tensors = [leaf for leaf in tree_leaves(before_layers(model, ids)) if isinstance(leaf, torch.Tensor)]
        # Real tensors of no more than a window's width come without masks; those without memory never do.
        masked = width > (getattr(model.config.get_text_config(), "sliding_window", None) or math.inf)
        storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if masked or t.dtype != torch.bool}
        return found[0], sum(storage.nbytes() for storage in storages.values())


def trace_rollout(
    model_config: "PretrainedConfig", config: Config, dtype: torch.dtype, lines: int, prompt: int, new: int
) -> int:
    """Returns the most bytes that the built-in loop needs for `lines` completions beside the weights: keys and values, the
    prompts' forward, one token's forward and its draw.
    """
    with fake_student(model_config, config, dtype) as (student, live), torch.no_grad(), live.watch() as found:
        decoder = make_decoder(student, None)
        decoder.sync()
        ids = torch.zeros(lines, prompt, dtype=torch.long)
        valid = torch.ones(lines, prompt + new, dtype=torch.bool)
        noise, sampling = torch.zeros(lines, new, dtype=torch.float64), _sampling(config)
        hidden = decoder.prefill(ids, valid[:, :prompt], prompt + new)
        token, _ = next_token(hidden, decoder.head, sampling, noise[:, 0])
        hidden = decoder.step(token, torch.zeros_like(token), prompt + new - 1, valid)
        next_token(hidden, decoder.head, sampling, noise[:, -1])
    return found[0]


@contextmanager
def fake_student(
    model_config: "PretrainedConfig", config: Config, dtype: torch.dtype
) -> "Iterator[tuple[Student, Live]]":
    """Gives the student of a config as load_student makes it, on fake tensors, and the count of what is alive."""
    base = empty_model(model_config, torch.float32 if config.full_finetune else dtype, config.trust_remote_code)
    quiet_dropout(base)
    with torch.device("meta"):
        model = base if config.full_finetune else with_adapter(base, config)
    if config.recomputes:
        recompute(model)
    with _fake() as live:
        _materialise(model)
        yield Student(model, torch.device("cpu"), dtype), live


@contextmanager
def _fake() -> "Iterator[Live]":
    """Tensors without numbers, counted. A mixture's tokens are multiplied by one expert, which has the shape of all: without
    numbers torch does not know how many tokens go to each, nor a grouped product in any dtype but bfloat16.
    """
    grouped = mock.patch(
        "transformers.integrations.moe._grouped_mm", lambda x, weight, offs: x.to(weight.dtype) @ weight[0]
    )
    with FakeTensorMode(), Live() as live, grouped:
        yield live


def _materialise(model: torch.nn.Module) -> None:
    """Puts fake tensors where the meta ones are; what is trained is float32, and what is shared stays shared."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and id(p) not in made:
                dtype = torch.float32 if p.requires_grad else p.dtype
                made[id(p)] = torch.nn.Parameter(torch.empty(p.shape, dtype=dtype), requires_grad=p.requires_grad)
            if p is not None:
                module._parameters[name] = made[id(p)]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


def _sampling(config: Config) -> Sampling:
    """The run's sampling; which ids are forbidden matters to no shape."""
    return Sampling(config.temperature, config.top_k, config.top_p, torch.zeros(1, dtype=torch.long))
