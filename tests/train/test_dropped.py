"""Steps that are dropped: when a run gives up, what it leaves, and weights that no training has."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import quick_flags, run_train
from safetensors.torch import load_file

from poweropd_lite.base.errors import UserError
from poweropd_lite.run.bounds import Bounds
from poweropd_lite.run.checkpoint import RunState
from poweropd_lite.run.recorder import too_many_dropped


def test_a_run_that_learns_nothing_gives_up_and_says_so(tmp_path):
    """A learning rate of 1e30 would move every weight by 1e30: five of eight steps are dropped, and no more is tried."""
    flags = ["--config", "bundled", *quick_flags(steps=8, lr=1e30, eval_every=0), "--output", "run"]
    done = run_train(*flags, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "step 1 dropped: it moved a weight by 1e+30" in done.stdout
    assert "gave up at step 5 of 8: 5 of the last 5 steps were dropped" in done.stdout
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["finished"], summary["steps"], summary["dropped_steps"]) == (False, 5, 5)
    assert summary["gave_up"].startswith("5 of the last 5 steps were dropped")
    assert not list((tmp_path / "run/checkpoints").glob("*"))
    weights = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert all(w.abs().max() <= 1 for w in weights.values())
    assert all(w.abs().max() == 0 for name, w in weights.items() if "lora_B" in name)  # as it began


@pytest.mark.parametrize(
    ("steps", "dropped", "at", "gives_up"),
    [
        (1000, range(101, 110), 109, False),  # nine in a row
        (1000, range(101, 111), 110, True),
        (1000, range(51, 71, 2), 100, False),  # ten of the last fifty
        (1000, range(51, 72, 2), 100, True),  # eleven
        (1000, range(1, 30, 3), 60, False),  # ten, but four of them among the last fifty
        (20, (1, 5, 9, 13), 20, False),  # a fifth of a short run
        (20, (1, 5, 9, 13, 17), 20, True),
        (8, (1, 3, 5, 7), 8, False),
        (4, (1, 2, 3, 4), 4, True),  # all of it
        (4, (1, 2, 3), 4, False),
    ],
)
def test_when_a_run_gives_up(steps, dropped, at, gives_up):
    row = 0
    while at - row in dropped:
        row += 1
    state = RunState(
        step=at, skipped=len(dropped), skipped_in_a_row=row, skipped_lately=[s for s in dropped if s > at - 50]
    )
    assert bool(too_many_dropped(state, steps)) is gives_up


def student(*values):
    weights = {f"w{i}": torch.nn.Parameter(torch.tensor([float(v)])) for i, v in enumerate(values)}
    return SimpleNamespace(trainable=lambda: weights), list(weights.values())


def stepped(lr, gradients, *values):
    learner, weights = student(*values)
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    bounds, metrics = Bounds(learner, optimizer), []
    for gradient in gradients:
        for weight in weights:
            weight.grad = torch.tensor([gradient])
        metrics.append(bounds.guard(lambda: optimizer.step() or {"optim/skipped": 0.0}) | {"moved": bounds.moved})
    return [w.item() for w in weights], metrics, optimizer, weights


def test_a_step_within_the_bounds_is_adamw_s():
    """Two steps of a constant gradient move a weight by lr each."""
    values, metrics, *_ = stepped(0.5, (3.0, 3.0), 1.0, -9000.0)
    assert values == pytest.approx([0.0, -9001.0], abs=1e-3)
    assert [m["optim/skipped"] for m in metrics] == [0.0, 0.0]
    assert [m["optim/largest_weight"] for m in metrics] == pytest.approx([9000.5, 9001.0])


def test_weights_that_leave_the_bounds_little_by_little_are_held_there():
    """From 9,999 by 0.5 a step: two steps are taken, to 10,000, and every later one is undone."""
    values, metrics, *_ = stepped(0.5, (-1.0,) * 5, 9999.0)
    assert values == pytest.approx([10000.0], abs=1e-2)
    assert [m["optim/skipped"] for m in metrics] == [0.0, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("lr", "value"), [(2000.0, 1.0), (0.5, -9999.7), (800.0, 9500.0)])
def test_a_step_beyond_them_is_undone_with_its_moments(lr, value):
    """By 2,000; to -10,000.2; to 10,300: the next step is the first again, of the same size."""
    sign = -1.0 if value > 0 else 1.0
    values, metrics, optimizer, weights = stepped(lr, (sign, sign), value)
    assert values == [pytest.approx(value)] and [m["optim/skipped"] for m in metrics] == [1.0, 1.0]
    assert optimizer.state.get(weights[0], {}) == {}
    assert [m["moved"] for m in metrics] == pytest.approx([lr, lr], rel=1e-4)


def test_what_adamw_can_not_do_ends_the_run():
    learner, (weight,) = student(1.0)
    optimizer = torch.optim.AdamW([weight], lr=0.1)

    def take():
        weight.data.fill_(2e4)  # as 8-bit moments of zero may
        return {"optim/skipped": 0.0}

    with pytest.raises(UserError, match="left a weight of 2e\\+04, beyond 10000"):
        Bounds(learner, optimizer).guard(take)
