"""float16 as a T4 would train in it, on a CPU, which computes in it too: the loss scale, and what is float32 all the same."""

import json
from copy import deepcopy

import pytest
import torch

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.checks import machine
from poweropd_lite.kernels.products import add_outer
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import Objective, accumulate, take_step
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.run import session
from poweropd_lite.run.checkpoint import RunState, load_checkpoint, save_checkpoint
from poweropd_lite.train import start, train

CPU = torch.device("cpu")
POWER = Objective("power", {"alpha": 1.0})
ROLLOUTS = [Rollout(tuple(range(40, 52)), tuple(range(60 + i, 84 + i)), (0.0,) * 24, "length") for i in range(4)]
COUNT = 4 * 24


def student_in(dtype):
    """The bundled student with an adapter that does something."""
    student, generator = load_student(load_config("bundled"), CPU, dtype), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.trainable().items():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return student


def scale_of(init, **settings):
    scaler = session.loss_scaler(CPU, torch.float16)
    scaler.load_state_dict(scaler.state_dict() | {"scale": init} | settings)
    return scaler


def gradient_of(student):
    return torch.cat([p.grad.flatten() for p in student.trainable().values()])


@pytest.fixture(scope="module")
def half():
    """Student and teacher in float16, and the gradient of a step in float32, not yet divided by N."""
    exact = student_in(torch.float32)
    accumulate(exact, load_teacher("bundled", 16, CPU, torch.float32), ROLLOUTS, POWER, 8192)
    return student_in(torch.float16), load_teacher("bundled", 16, CPU, torch.float16), gradient_of(exact)


@pytest.mark.parametrize("scale", [16.0, 1024.0])
def test_a_gradient_in_float16_is_near_and_unscaled_before_the_clip(half, scale):
    """0.3% from float32's (bfloat16's is 1.2%); AdamW's first mean is a tenth of what it was given: the unscaled, clipped gradient."""
    student, teacher, exact = half
    scaler = scale_of(scale)
    gradient = accumulate(student, teacher, ROLLOUTS, POWER, 8192, scaler)
    assert (gradient_of(student) / scale - exact).norm() < 0.006 * exact.norm()
    optimizer = torch.optim.AdamW(student.trainable().values(), lr=0.0, fused=True)
    limit = 0.5 * exact.norm().item() / COUNT
    metrics = take_step(student, optimizer, gradient, limit, scaler)
    assert metrics["optim/grad_norm"] == pytest.approx(exact.norm().item() / COUNT, rel=0.006)
    given = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in student.trainable().values()])
    assert (given / 0.1 - 0.5 * exact / COUNT).norm() < 0.012 * limit


def test_without_a_scale_small_gradients_are_lost_and_with_too_large_a_one_all_are(half):
    student, teacher, exact = half
    error = {}
    for power in (-8, 24):
        accumulate(student, teacher, ROLLOUTS, POWER, 8192, scale_of(2.0**power))
        error[power] = ((gradient_of(student) / 2.0**power - exact).norm() / exact.norm()).item()
    assert error[-8] > 0.9 and not error[24] < 1


def test_a_step_that_overflows_is_dropped_and_halves_the_scale_and_a_hundred_that_do_not_double_it(half):
    student, teacher, _ = half
    optimizer = torch.optim.AdamW(student.trainable().values(), lr=1e-3, fused=True)

    def step(scaler):
        return take_step(student, optimizer, accumulate(student, teacher, ROLLOUTS, POWER, 8192, scaler), 1.0, scaler)

    scaler = scale_of(16.0, _growth_tracker=98)
    assert [(step(scaler)["optim/skipped"], scaler.get_scale()) for _ in range(2)] == [(0.0, 16.0), (0.0, 32.0)]
    weights = [p.detach().clone() for p in student.trainable().values()]
    states = deepcopy(optimizer.state_dict()["state"])
    scaler = scale_of(2.0**26, _growth_tracker=98)
    assert (step(scaler)["optim/skipped"], scaler.get_scale()) == (1.0, 2.0**25)
    assert scaler.state_dict()["_growth_tracker"] == 0
    for before, now in zip(weights, student.trainable().values(), strict=True):
        assert torch.equal(before, now)
    for before, now in zip(states.values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(before[name], now[name]) for name in before)
    assert scale_of(16.0).state_dict()["growth_interval"] == 100 < Config.model_fields["steps"].default


def test_log_probs_and_powers_are_float32_whatever_the_weights_are(half):
    """exp(-30) is 9e-14, which float16, whose least number is 6e-8, calls 0: a power of it is paid all the same."""
    student, teacher, _ = half
    squared = Objective("power", {"alpha": 2.0})
    tokens = accumulate(student, teacher, ROLLOUTS, squared, 8192, scale_of(16.0)).tokens
    assert student.head.weight.dtype == teacher.head.weight.dtype == torch.float16
    assert {t.dtype for t in (tokens.log_p, tokens.log_q, tokens.reward, tokens.entropy)} == {torch.float32}
    exact = tokens.log_p.double().exp() ** 2 - tokens.log_q.double().exp() ** 2
    assert (tokens.reward - exact).norm() < 1e-6 * exact.norm() and 0 < tokens.reward.abs().max() < 6e-8
    log_p, log_q = torch.tensor([-30.0]), torch.tensor([-31.0])
    assert POWER.pay(log_p, log_q).item() == pytest.approx(5.915e-14, rel=1e-3)
    # The log-prob itself is of float32 logits: against the same hidden states and head in float64.
    with torch.no_grad():
        hidden = student.hidden(torch.tensor([ROLLOUTS[0].prompt_ids + ROLLOUTS[0].completion_ids]))[0, 11:35]
    ids = torch.tensor(ROLLOUTS[0].completion_ids)[:, None]
    wanted = (hidden.double() @ student.head.weight.double().T).log_softmax(-1).gather(-1, ids)[:, 0]
    assert (tokens.log_q[:24] - wanted).abs().max() < 1e-5


def test_a_trained_head_s_gradient_keeps_small_rewards():
    """Rewards of 1e-9 leave nothing of a hidden state in float16."""
    generator = torch.Generator().manual_seed(0)
    dlogits, hidden = torch.randn(6, 33, generator=generator).half(), torch.randn(6, 8, generator=generator).half()
    paid = 1e-9 * torch.rand(6, 1, generator=generator)
    assert not (hidden * paid).half().any()
    out = torch.zeros(33, 8)
    add_outer(out, dlogits, hidden * paid)
    wanted = dlogits.double().T @ (hidden.double() * paid.double())
    assert (out - wanted).norm() < 1e-6 * wanted.norm()


def test_a_resumed_run_keeps_the_scale_bit_for_bit(half, tmp_path):
    """A scale that fell, three steps after it did: weights, moments and scale of the next step are as without a stop."""
    student, teacher, _ = half
    scaler = scale_of(2.0**-3, _growth_tracker=3)
    optimizer = torch.optim.AdamW(student.trainable().values(), lr=1e-3, weight_decay=0.0, fused=True)

    def step(scaler, optimizer):
        take_step(student, optimizer, accumulate(student, teacher, ROLLOUTS, POWER, 8192, scaler), 1.0, scaler)
        return [p.detach().clone() for p in student.trainable().values()], scaler.state_dict()

    config = load_config("bundled")
    step(scaler, optimizer)
    path = save_checkpoint(tmp_path, RunState(step=1), student, optimizer, scaler, config)
    weights, state = step(scaler, optimizer)
    fresh = session.loss_scaler(CPU, torch.float16)
    other = torch.optim.AdamW(student.trainable().values(), lr=1e-3, weight_decay=0.0, fused=True)
    load_checkpoint(path, student, other, fresh, config)
    assert (fresh.get_scale(), fresh.state_dict()["_growth_tracker"]) == (2.0**-3, 4)
    again, restored = step(fresh, other)
    assert restored == state and state["_growth_tracker"] == 5
    assert all(torch.equal(before, now) for before, now in zip(weights, again, strict=True))


def test_a_run_counts_the_steps_that_overflow(tmp_path, monkeypatch):
    """It begins with too large a scale: what is dropped is counted, said, and not in the weights."""
    monkeypatch.setattr(machine, "dtype_name", lambda asked, *_: asked)  # which on a CPU is refused
    monkeypatch.setattr(session, "LOSS_SCALE", 2.0**25)
    monkeypatch.setattr(start, "planned_gib", lambda *_: None)  # which takes as long as the run
    small = {"batch_size": 2, "max_prompt_tokens": 64, "max_new_tokens": 8, "eval_benchmarks": None, "eval_every": 0}
    train(load_config("bundled", dtype="float16", teacher_bits=16, steps=3, output=str(tmp_path / "run"), **small))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    dropped, scale = [line["optim/skipped"] for line in lines], 2.0**25
    assert dropped[0] == 1.0 > dropped[2]
    for line in lines:
        scale /= 1 + line["optim/skipped"]
        assert line["optim/loss_scale"] == scale
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["dropped_steps"] == sum(dropped)
