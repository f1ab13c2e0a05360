"""How often a step's host waits for the device: counted on a CPU, where tensors are told apart as if there were a card."""

import itertools
import sys
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from poweropd_lite.base.config import load_config
from poweropd_lite.method import update
from poweropd_lite.run.recorder import Recorder
from poweropd_lite.train import start, train

READS = (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.numpy, Tensor.nonzero)


class Card(TorchFunctionMode):
    """Takes the tensors of `owned` for a card's, and all that is made of them or, by `device=`, beside them, until it is read.

    `waits` has where the package read one, or sent one to it: file.function. Reading is what makes the host wait: a number,
    a list, a copy, and a mask as an index, whose size only the card knows.
    """

    def __init__(self, owned) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sent: list[str] = []
        self.mine = torch.utils.weak.WeakIdKeyDictionary()
        self.own(owned)

    def own(self, tensors) -> None:
        for tensor in tensors:
            self.mine[tensor] = True

    def on_card(self, value) -> bool:
        return isinstance(value, Tensor) and value in self.mine

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            out = func(*args, **kwargs)
        here = any(map(self.on_card, tree_leaves((args, kwargs))))
        moved = func is Tensor.to and any(isinstance(a, torch.device) for a in (*args[1:], kwargs.get("device")))
        masks = func in (Tensor.__getitem__, Tensor.__setitem__) and any(
            self.on_card(i) and i.dtype == torch.bool for i in tree_leaves(args[1])
        )
        if here and (func in (*READS, torch.nonzero, Tensor.cpu) or masks):
            self.waits.append(_place())
        elif moved and not here:
            self.sent.append(_place())
        if func is Tensor.cpu and here:
            out = out.clone()
        elif here or moved or kwargs.get("device") is not None:
            self.own(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out


def _place() -> str:
    frame = sys._getframe(2)
    while "poweropd_lite/" not in frame.f_code.co_filename:
        assert frame.f_back is not None
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2].removesuffix('.py')}.{frame.f_code.co_name}"


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """What the host waited for in each of two steps of the bundled pair, in micro-batches of at most 256 tokens."""
    steps: list[tuple[Counter, Counter]] = []
    run_loop, step = start.run_loop, Recorder.step

    def on_a_card(session, *rest):
        session.engine.fixed, session.engine.graphs = True, False  # the loop of a card
        models = session.student.model, session.teacher.model
        weights = itertools.chain(*((*m.parameters(), *m.buffers()) for m in models))
        with Card([*weights, session.ready.objective.sampling.forbidden]) as card:

            def recorded(*args):
                step(*args)
                steps.append((Counter(card.waits), Counter(card.sent)))
                card.waits.clear()
                card.sent.clear()

            patch.setattr(Recorder, "step", recorded)
            patch.setattr(update, "_finish", lambda device: card.waits.append("update._finish"))
            run_loop(session, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "run_loop", on_a_card)
        output = str(tmp_path_factory.mktemp("waits") / "run")
        short = {"batch_size": 8, "max_new_tokens": 24, "token_budget": 256, "teacher_bits": 32}
        off = {"eval_benchmarks": None, "eval_every": 0, "guard_every": 100}
        train(load_config("bundled", steps=2, output=output, **short, **off))
    return steps


def test_a_step_waits_where_a_number_is_needed_and_nowhere_else(counted):
    waits, sent = counted[1]  # the first step also looks at how its tokens were drawn
    assert waits == {
        "loop._decode_fixed": 1,  # is any line open: after 16 of 24 tokens
        "loop.rollouts": 4,  # the samples: ids, log-probs, lengths, which stopped; the last three wait for nothing
        "metrics.on_host": 1,  # all of the step's tokens: the guard's means and the metrics are made of them on the host
        "update.take_step": 1,  # loss and norm, without which the step is not taken
        "bounds.largest": 1,  # the largest weight, by which the step is kept
        "update._finish": 3,  # the ends of teacher, student and optimizer, whose seconds are told apart
    }  # and nothing a micro-batch, of which there are several
    assert sent == {"loop.__init__": 3, "batch.<genexpr>": 7 * 3}  # seven tensors each, before the teacher begins
