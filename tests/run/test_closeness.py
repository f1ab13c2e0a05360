"""The KL to the teacher by samples: the estimate and its error against sums by hand, and whole models against transformers."""

import math

import pytest
import torch
from conftest import make_engine

from poweropd_lite.models.teacher import Teacher, load_teacher
from poweropd_lite.run.closeness import closeness, difference_error, measure

CPU = torch.device("cpu")


def test_the_estimate_and_its_error_by_hand():
    # Two completions: log ratios 1, 3 (sum 4 of 2) and 2 (sum 2 of 1); a third has no token in the loss.
    log_q, log_p = torch.tensor([-1.0, -1.0, -0.5]), torch.tensor([-2.0, -4.0, -2.5])
    found = closeness(log_p, log_q, [2, 0, 1])
    assert (found.kl, found.teacher_logprob, found.tokens, found.completions) == (2.0, -8.5 / 3, 3, 2)
    assert found.kl_error == 0.0  # 4 - 2 * 2 and 2 - 2 * 1
    found = closeness(log_p, torch.tensor([-1.0, -1.0, -2.5]), [2, 0, 1])  # sums 4 and 0, KL 4/3
    assert found.kl_error == pytest.approx(math.sqrt(((4 - 8 / 3) ** 2 + (4 / 3) ** 2) * 2) / 3)
    assert closeness(log_p[:1], log_q[:1], [1]).record()["kl_error"] is None


def test_the_error_of_a_difference_by_hand():
    # First: S = 4, 2 of n = 2, 2: KL 1.5, e = 1/4, -1/4. Second: S = 3, 1 of 1, 1: KL 2, f = 1/2, -1/2.
    assert difference_error([(4.0, 2), (2.0, 2)], [(3.0, 1), (1.0, 1)]) == math.sqrt(2 * (0.25**2 + 0.25**2))
    # What both have in common is no error: here the second is twice the first, and the difference the first's own.
    assert difference_error([(4.0, 2), (2.0, 2)], [(8.0, 2), (4.0, 2)]) == math.sqrt(2 * (0.25**2 + 0.25**2))
    assert difference_error([(4.0, 2), (2.0, 2)], [(4.0, 2), (2.0, 2)]) == 0.0
    assert math.isnan(difference_error([(4.0, 2)], [(3.0, 2)]))


def test_the_error_is_that_of_many_repetitions():
    generator = torch.Generator().manual_seed(0)
    said, kls = [], []
    for _ in range(300):
        lengths = torch.randint(1, 30, (40,), generator=generator)
        of_completion = torch.randn(40, generator=generator).repeat_interleave(
            lengths
        )  # tokens of one are not independent
        ratio = 1.0 + of_completion + torch.randn(int(lengths.sum()), generator=generator)
        found = closeness(-ratio, torch.zeros_like(ratio), lengths.tolist())
        said.append(found.kl_error)
        kls.append(found.kl)
    spread = torch.tensor(kls).std().item()
    assert torch.tensor(said).mean().item() == pytest.approx(spread, rel=0.1)
    assert abs(torch.tensor(kls).mean().item() - 1.0) < 4 * spread / math.sqrt(300)


def test_an_offloaded_teacher_is_given_a_batch_at_a_time_and_says_the_same(student_model, prompts, pair):
    forbidden, given = torch.tensor(pair.forbidden), []
    resident, offloaded = (load_teacher("bundled", 32, CPU, torch.float32, offload=o) for o in (False, True))
    hiddens, before = offloaded.hiddens, offloaded.streamed.bytes_brought
    offloaded.hiddens = lambda several: given.append(sum(len(ids) for ids in several)) or hiddens(several)
    sizes = prompts[:12], forbidden, 24, 0, 5, 256
    found = [measure(make_engine(student_model, pair), lambda t=t: t, *sizes)[0] for t in (resident, offloaded)]
    assert given == [5, 5, 2] and found[1].kl == pytest.approx(found[0].kl, abs=1e-6)
    assert offloaded.streamed.bytes_brought - before == 3 * offloaded.streamed.host_bytes


def test_two_models_against_transformers_own_forward(student_model, teacher_model, prompts, pair):
    forbidden, asked = torch.tensor(pair.forbidden), prompts[:12]
    engine = make_engine(student_model, pair)
    teacher = Teacher(teacher_model)  # float64
    found = measure(engine, lambda: teacher, asked, forbidden, 40, 0, 5, 1024)
    assert found is not None
    near, first = found
    # The same draws again, five at a time as before, and every log-prob by plain forwards of one sequence in float64.
    from poweropd_lite.method.logprobs import Sampling
    from poweropd_lite.method.rollout import Draws

    student64, ratios, said = student_model.double(), [], []
    engine = make_engine(student_model.float(), pair)
    rollouts = [
        r
        for start in (0, 5, 10)
        for r in engine.sample(
            [prompt.ids for prompt in asked[start : start + 5]],
            Draws(0, 2, 0, tuple(range(start, min(start + 5, 12)))),
            Sampling(forbidden=forbidden),
            40,
        )
    ]
    assert rollouts[0] == first
    assert near.length == sum(len(r.completion_ids) for r in rollouts) / 12
    assert near.stop_share == sum(r.finish == "stop" for r in rollouts) / 12
    student64 = student_model.double()
    for rollout in rollouts:
        body = rollout.completion_ids[:-1] if rollout.finish == "stop" else rollout.completion_ids
        ids = torch.tensor([[*rollout.prompt_ids, *body]])
        start = len(rollout.prompt_ids)
        with torch.no_grad():
            q, p = (
                m(ids).logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]
                for m in (student64, teacher_model)
            )
        ratios.append((q - p).sum().item())
        said += p.tolist()
    count = len(said)
    assert near.tokens == count and near.kl == pytest.approx(sum(ratios) / count, abs=1e-5)
    assert near.teacher_logprob == pytest.approx(sum(said) / count, abs=1e-5)
