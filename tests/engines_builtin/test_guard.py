"""The rollout-parity guard: silent on a sound engine, and naming each fault with its numbers."""

import dataclasses
import functools
import math

import pytest
import torch
from safetensors.torch import save_file

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.pair import load_pair
from poweropd_lite.engines.guard import RATIOS, Guard, _peak, tempered_logprobs
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.kernels.products import Head
from poweropd_lite.method.batch import Stops
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Draws
from poweropd_lite.models.student import load_student
from poweropd_lite.problems.reading import load_prompts

CPU = torch.device("cpu")


@functools.cache
def loaded():
    config = load_config("bundled")
    pair = load_pair(config)
    return pair, [p.ids for p in load_prompts(config, pair.tokenizer)[0]]


def engine_logprobs(rollouts, stop_mode):
    """The engine's log-probs of the tokens of the loss; NaN for a stop that is in it."""
    values = []
    for r in rollouts:
        values += r.logprobs[:-1] if r.finish == "stop" else r.logprobs
        values += [math.nan] * (r.finish == "stop" and stop_mode != "mask")
    return values


class Bench:
    """A student, an engine and a guard, without a trainer: `step` moves the weights at random, samples and checks."""

    def __init__(self, dtype=torch.float32, size=0.02, **settings) -> None:
        self.config = load_config("bundled", **{"guard_every": 1, **settings})
        (self.pair, self.prompts), self.size = loaded(), size
        self.student = load_student(self.config, CPU, dtype)
        self.engine = LoopEngine(self.student, self.pair.stop_ids, say=print)
        self.sampling = Sampling(
            self.config.temperature, self.config.top_k, self.config.top_p, torch.tensor(self.pair.forbidden)
        )
        self.guard = Guard(
            self.engine, self.student, self.sampling, Stops(self.config.stop_mode), self.config.guard_every, None
        )
        self.number, self.generator = 0, torch.Generator().manual_seed(0)

    def move(self) -> None:
        with torch.no_grad():
            for p in self.student.trainable().values():
                p.add_(torch.randn(p.shape, generator=self.generator), alpha=self.size)

    def step(self, sync=True, sampling=None, rows=16):
        if sync:
            self.engine.sync()
        draws = Draws(0, 0, self.number, tuple(range(rows)))
        rollouts = self.engine.sample(self.prompts[:rows], draws, sampling or self.sampling, 60)
        engine = torch.tensor(engine_logprobs(rollouts, "mask"))
        log_q = torch.cat([self.log_q(r) for r in rollouts])
        self.number += 1
        return self.guard.check(self.number - 1, rollouts, log_q, engine, 1024)

    def log_q(self, rollout):
        """The trainer's log-probs of one rollout, by a plain forward."""
        count = len(rollout.completion_ids) - (rollout.finish == "stop")
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        start = len(rollout.prompt_ids) - 1
        with torch.no_grad(), self.student.compute():
            logits = self.student.hidden(ids)[0, start : start + count].float() @ self.student.head.weight.float().T
        return logits.log_softmax(-1).gather(-1, torch.tensor(rollout.completion_ids[:count])[:, None])[:, 0]


def test_a_sound_engine_passes_and_its_figures_are_right():
    bench = Bench()
    first = bench.step(rows=64)
    assert first["parity/gap"] < 1e-5 and "parity/adapter_effect" not in first
    assert 0.85 < first["parity/temperature"] < 1.18
    bench.move()
    second = bench.step()
    assert second["parity/gap"] < 1e-5 and second["parity/adapter_effect"] > 0.005


def test_the_adapters_effect_is_the_mean_change_of_log_q():
    bench = Bench()
    bench.step()
    bench.move()
    bench.engine.sync()
    rollouts = bench.engine.sample(bench.prompts[:8], Draws(0, 0, 9, tuple(range(8))), bench.sampling, 60)
    on = torch.cat([bench.log_q(r) for r in rollouts])
    with bench.student.without_adapter():
        off = torch.cat([bench.log_q(r) for r in rollouts])
    facts = bench.guard.check(1, rollouts, on, torch.tensor(engine_logprobs(rollouts, "mask")), 1024)
    assert facts["parity/adapter_effect"] == pytest.approx((on - off).abs().mean().item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_is_ignored_is_named(dtype):
    bench = Bench(dtype, size=0.04)
    bench.step()
    bench.move()
    with pytest.raises(UserError, match="at step 2 .*the engine ignores the adapter"):
        bench.step(sync=False)  # the decoder has taken copies of the zero adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_sent_too_early_is_caught_in_every_dtype(dtype, tmp_path):
    """What an engine was sent is compared bit for bit: one value off by the smallest step is enough."""
    bench = Bench(dtype)
    bench.move()
    sent = {k.replace(".default.", "."): v.detach().clone() for k, v in bench.student.trainable().items()}
    bench.engine.sent = tmp_path
    save_file(sent, tmp_path / "adapter_model.safetensors")
    bench.step()
    with torch.no_grad():
        p = next(iter(bench.student.trainable().values()))
        p.view(-1)[5] = torch.nextafter(p.view(-1)[5], torch.tensor(9.0))
    with pytest.raises(UserError, match="is not the one being trained: 1 of 42 tensors differ"):
        bench.step()


def test_the_adapter_of_the_step_before_is_named(tmp_path):
    bench = Bench()
    bench.step()
    bench.move()
    before = {k.replace(".default.", "."): v.detach().clone() for k, v in bench.student.trainable().items()}
    bench.step()
    save_file(before, tmp_path / "adapter_model.safetensors")
    bench.engine.sent_before = tmp_path
    bench.move()
    kept = {k: v.clone() for k, v in bench.student.trainable().items()}
    with pytest.raises(UserError, match="those of the adapter of the step before"):
        bench.step(sync=False)
    assert all(torch.equal(v, kept[k]) for k, v in bench.student.trainable().items())  # looked at, and put back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("truth", [0.7, 1.4])
def test_another_temperature_is_estimated(dtype, truth):
    bench = Bench(dtype)
    with pytest.raises(UserError, match=r"look drawn at temperature (\d\.\d+), not 1 ") as caught:
        bench.step(sampling=Sampling(truth, forbidden=bench.sampling.forbidden), rows=64)
    estimate = float(str(caught.value).split("at temperature ")[1].split(",")[0])
    assert abs(estimate - truth) < 0.1


def test_truncated_sampling_is_told_from_another_temperature():
    bench = Bench(top_k=20, top_p=0.95, temperature=0.8)
    assert 0.65 < bench.step(rows=64)["parity/temperature"] < 0.95
    with pytest.raises(UserError, match="could not have been drawn at temperature 0.8 with top-k 20 and top-p 0.95"):
        bench.step(sampling=dataclasses.replace(bench.sampling, temperature=1.3), rows=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_base_weights_are_named(dtype):
    bench = Bench(dtype)
    bench.step()
    with torch.no_grad():  # of the engine's own copies
        for layer in bench.engine.decoder.layers:
            if layer.down.owned:
                layer.down.weight.mul_(0.9)
            else:
                layer.down.bases = [torch.nn.Linear(384, 128, bias=False, dtype=dtype)]
    with pytest.raises(UserError, match="the engine has other base weights than the trainer"):
        bench.step(sync=False)


def test_another_dtype_is_named():
    bench = Bench()
    bench.engine.dtype = torch.bfloat16
    with pytest.raises(UserError, match="the loop engine computes in bfloat16, the trainer in float32"):
        bench.step()


def test_in_half_precision_the_limit_follows_the_first_gap():
    bench = Bench(torch.bfloat16)
    first = bench.step()["parity/gap"]
    assert 1e-4 < first < 0.05
    assert bench.guard.limit == pytest.approx(max(4 * first, 0.02))
    assert Guard(bench.engine, bench.student, bench.sampling, Stops(), 1, 0.01).limit == pytest.approx(0.04)
    assert Bench().guard.limit == 1e-4


def test_tempered_logprobs_equal_the_definition():
    """By hand in float64: temperature, then the six largest of what may be drawn, renormalised."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 8), torch.randn(30, 8)
    sampling = Sampling(0.7, top_k=6, forbidden=torch.tensor([3, 4]))
    z = hidden.double() @ weight.double().T
    z[:, [3, 4]] = -torch.inf
    best = z.topk(6)
    ours = tempered_logprobs(hidden, Head(weight), best.indices[:, 2], sampling, [0.5, 0.7, 2.0])
    for column, temperature in enumerate((0.5, 0.7, 2.0)):
        wanted = (best.values / temperature).log_softmax(-1)[:, 2]
        torch.testing.assert_close(ours[:, column].double(), wanted, atol=1e-5, rtol=1e-4)
    seventh = z.topk(7).indices[:, 6]
    assert tempered_logprobs(hidden, Head(weight), seventh, sampling, [0.7]).isneginf().all()


def test_the_temperature_is_the_peak_of_a_parabola():
    # -(log T - log 0.75)^2 is a parabola over log T, so three points of it give its peak exactly
    grid = [0.5, 0.6, 0.7, 0.8, 0.9]
    assert _peak(grid, [-((math.log(t) - math.log(0.75)) ** 2) for t in grid]) == pytest.approx(0.75)
    assert _peak(grid, [5.0, 4.0, 3.0, 2.0, 1.0]) == 0.5


def test_chance_does_not_add_up_to_an_alarm():
    """Twenty checks of a sound engine: the evidence for other temperatures falls, it does not wander up."""
    bench = Bench()
    for _ in range(20):
        bench.step()
    others = [e for i, e in enumerate(bench.guard.evidence.tolist()) if RATIOS[i] != 1.0]
    assert max(others) < 0
    assert 0.95 < bench.step()["parity/temperature"] < 1.05


def test_wrong_truncation_is_named():
    bench = Bench(top_k=5)
    with pytest.raises(
        UserError,
        match=r"\d\.\d% of the loop engine's tokens could not have been drawn at temperature 1 with top-k 5 and",
    ):
        bench.step(sampling=Sampling(forbidden=bench.sampling.forbidden))


def test_weights_that_gave_nan_are_left_to_the_dropped_step():
    bench = Bench()
    bench.engine.sync()
    rollouts = bench.engine.sample(bench.prompts[:2], Draws(0, 0, 0, (0, 1)), bench.sampling, 20)
    engine = torch.tensor(engine_logprobs(rollouts, "mask"))
    assert bench.guard.check(0, rollouts, torch.full_like(engine, float("nan")), engine, 1024) == {}


@pytest.mark.parametrize("stop_mode", ["mask", "raw"])
def test_an_engine_without_logprobs_is_named(stop_mode):
    """NaN stands for a final stop in the trainer's record; anywhere else it is the engine's fault."""
    bench = Bench(stop_mode=stop_mode)
    bench.engine.sync()
    rollouts = bench.engine.sample(bench.prompts[:8], Draws(0, 0, 0, tuple(range(8))), bench.sampling, 112)
    engine = torch.tensor(engine_logprobs(rollouts, stop_mode))
    log_q = engine.nan_to_num(-1.0)
    assert bench.guard.check(0, rollouts, log_q, engine, 1024)["parity/gap"] == 0.0
    engine[3] = float("nan")
    with pytest.raises(UserError, match="gave no log-prob for 1 of"):
        bench.guard.check(0, rollouts, log_q, engine, 1024)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_few_tokens_in_bfloat16_raise_no_alarm(seed):
    """One short completion a step: mean gaps of a few tokens scatter over a factor of ten."""
    bench = Bench(torch.bfloat16, size=0.002, top_k=20, top_p=0.9)
    bench.prompts = bench.prompts[100 * seed :]
    for _ in range(12):
        bench.step(rows=1)
        bench.move()


def test_too_few_tokens_estimate_no_temperature():
    assert "parity/temperature" not in Bench(top_k=1).step(rows=4)
