"""The built-in engine against transformers, against its own definition, and against the distribution it should draw from."""

import copy

import pytest
import torch
from conftest import make_engine, make_rollouts
from transformers import Qwen3Config, Qwen3ForCausalLM

from poweropd_lite.engines.any_model import AnyDecoder
from poweropd_lite.engines.decode import FastDecoder
from poweropd_lite.engines.draw import draw, draw_in_one_pass
from poweropd_lite.engines.loop import make_decoder
from poweropd_lite.method.logprobs import Sampling, kept_ids
from poweropd_lite.method.rollout import TRAINING, Draws
from poweropd_lite.models.loading import final_hidden
from poweropd_lite.models.student import Student


def logits_of(model, rollout):
    """float32 logits [T, V] of a rollout's completion tokens, by one plain forward."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    with torch.no_grad():
        return model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1]


def test_greedy_equals_transformers_generate(student_model, prompts, pair):
    rollouts = make_rollouts(student_model, prompts[:16], pair, Sampling(top_k=1), longest=80)
    for prompt, rollout in zip(prompts[:16], rollouts, strict=True):
        ids = torch.tensor([prompt.ids])
        out = student_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=80,
            do_sample=False,
            eos_token_id=sorted(pair.stop_ids),
        )
        assert tuple(out[0, ids.shape[1] :].tolist()) == rollout.completion_ids


def test_logprobs_are_those_of_a_plain_forward(student_model, prompts, pair):
    sampling = Sampling(0.8, top_k=20, top_p=0.9, forbidden=torch.tensor(pair.forbidden))
    for rollout in make_rollouts(student_model, prompts[:16], pair, sampling):
        logits = logits_of(student_model, rollout)
        ids = torch.tensor(rollout.completion_ids)[:, None]
        raw = logits.log_softmax(-1).gather(-1, ids).squeeze(-1)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), raw, atol=2e-4, rtol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(student_model, prompts, pair):
    together = make_rollouts(student_model, prompts[:12], pair)
    for row in (0, 5, 11):
        (alone,) = make_rollouts(student_model, [prompts[row]], pair, rows=[row])
        assert alone.completion_ids == together[row].completion_ids
    assert len({len(r.completion_ids) for r in together}) > 3  # rows did end at different times, and were dropped


def test_completions_end_at_the_first_stop_id_or_at_the_length(rollouts, pair):
    endings = [r.finish for r in rollouts]
    assert endings.count("stop") > 6
    for rollout in rollouts:
        *body, last = rollout.completion_ids
        assert not pair.stop_ids & set(body)
        assert (last in pair.stop_ids) == (rollout.finish == "stop")
        assert rollout.finish == "stop" or len(rollout.completion_ids) == 60


def test_random_numbers_depend_on_seed_purpose_step_and_row_alone():
    whole = Draws(7, 0, 3, tuple(range(8)))
    one = Draws(7, 0, 3, (5,))
    assert torch.equal(one.uniforms(50)[0], whole.uniforms(50)[5])
    assert torch.equal(one.uniforms(20)[0], whole.uniforms(50)[5, :20])
    assert one.request_seeds() == [whole.request_seeds()[5]]
    others = [Draws(8, 0, 3, (5,)), Draws(7, 1, 3, (5,)), Draws(7, 0, 4, (5,)), Draws(7, 0, 3, (6,))]
    assert not any(torch.equal(other.uniforms(50), one.uniforms(50)) for other in others)
    assert len({one.request_seeds()[0], *(other.request_seeds()[0] for other in others)}) == 5


def test_draws_follow_the_truncated_distribution():
    """200,000 draws over 6 ids: every share within 5 standard errors of its probability, excluded ids never."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 3.0])
    sampling = Sampling(temperature=0.7, top_k=4, top_p=0.97, forbidden=torch.tensor([5]))
    weights = {0: 2.0, 1: 1.0, 2: 0.5}  # by hand: top-k drops id 4; the first three hold 0.957 < 0.97, so id 3 stays
    weights[3] = 0.0
    probs = torch.tensor([weights[i] for i in range(4)]).div(0.7).softmax(-1)
    count = 200_000
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids, raw = draw(logits.repeat(count, 1), sampling, noise)
    shares = torch.bincount(ids, minlength=6) / count
    assert shares[4:].tolist() == [0.0, 0.0]
    error = (probs * (1 - probs) / count).sqrt()
    assert ((shares[:4] - probs).abs() < 5 * error).all()
    torch.testing.assert_close(raw, logits.log_softmax(-1)[ids])


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(forbidden=torch.arange(4990, 5003)), Sampling(0.7, top_p=0.9)]
)
def test_drawing_a_block_first_draws_what_the_whole_cumulative_sum_does(sampling):
    """5,003 ids are five blocks, the last one short; 4,000 rows at numbers near 0 and 1 too, by the definition in float64."""
    g = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(4000, 5003, generator=g)
    logits -= logits.amax(-1, keepdim=True)
    noise = torch.rand(4000, generator=g, dtype=torch.float64)
    noise[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    kept = (logits.double() / sampling.temperature).masked_fill(~kept_ids(logits, sampling), -torch.inf)
    ends = kept.softmax(-1).cumsum(-1)
    wanted = torch.searchsorted(ends, noise[:, None] * ends[:, -1:], right=True).squeeze(-1)
    ids, logprob = draw(logits.clone(), sampling, noise)
    assert (ids != wanted.clamp_max(5002)).sum() <= 2  # rounding ties: float32 masses against float64
    assert kept.gather(-1, ids[:, None]).isfinite().all()
    torch.testing.assert_close(logprob, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0])
    if not sampling.truncates:
        few = torch.cat([logits[:2], logits[2:40]])
        ours = draw_in_one_pass(few + 7.5, sampling, noise[:40])  # in Triton's interpreter
        assert torch.equal(ours[0], ids[:40])
        torch.testing.assert_close(ours[1], logprob[:40], rtol=1e-6, atol=2e-6)


def test_a_forbidden_id_far_above_all_others_is_not_drawn_and_leaves_a_draw():
    """300 nats above: beside it every other id has mass 0 in float32, and among themselves they have 1/3 each."""
    logits = torch.tensor([[300.0, 0.0, 0.0, 0.0]])
    for draws in (draw, draw_in_one_pass):
        for number, wanted in ((0.1, 1), (0.5, 2), (0.9, 3)):
            noise = torch.tensor([number], dtype=torch.float64)
            ids, logprob = draws(logits.clone(), Sampling(forbidden=torch.tensor([0])), noise)
            assert (ids.item(), logprob.item()) == (wanted, -300.0)


def test_the_largest_uniform_number_never_draws_an_excluded_id():
    logits = torch.zeros(1, 8)
    noise = torch.tensor([1 - 2**-53], dtype=torch.float64)
    ids, logprob = draw(logits.clone(), Sampling(forbidden=torch.tensor([6, 7])), noise)
    assert ids.item() == 5 and torch.isfinite(logprob).all()


def test_forbidden_ids_are_never_sampled(student_model, prompts, pair):
    with torch.no_grad():  # make the padded rows the likeliest of all
        student_model.lm_head.weight[list(pair.forbidden)] = student_model.lm_head.weight.mean(0) * 50
    for rollout in make_rollouts(student_model, prompts[:8], pair):
        assert not set(pair.forbidden) & set(rollout.completion_ids)


def test_the_fixed_shape_loop_samples_the_same(student_model, prompts, pair):
    """The loop that CUDA captures in graphs, run as it is: three buckets of columns, then every line at its end."""
    from poweropd_lite.engines import loop

    sampling = Sampling(0.9, top_k=20, top_p=0.95, forbidden=torch.tensor(pair.forbidden))
    engine, ids = make_engine(student_model, pair), [p.ids for p in prompts[:12]]
    draws = Draws(0, TRAINING, 0, tuple(range(12)))
    dropping = engine.sample(ids, draws, sampling, 80)
    engine.fixed = True
    bucket, loop.BUCKET = loop.BUCKET, 48
    try:
        fixed = engine.sample(ids, draws, sampling, 80)
    finally:
        loop.BUCKET = bucket
    assert [r.completion_ids for r in fixed] == [r.completion_ids for r in dropping]
    assert [r.finish for r in fixed] == [r.finish for r in dropping]
    for one, other in zip(fixed, dropping, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4)


def test_a_model_that_the_decoder_does_not_know_decodes_through_transformers(student_model, prompts, pair, capsys):
    """A model whose activation is another one: the built-in decoder steps back, and says so."""
    from transformers.activations import ACT2FN

    for layer in student_model.model.layers:
        layer.mlp.act_fn = ACT2FN["gelu"]
    rollouts = make_rollouts(student_model, prompts[:4], pair, longest=20)
    assert "the built-in decoder does not know this model (its hidden states differ" in capsys.readouterr().out
    for rollout in rollouts:
        raw = logits_of(student_model, rollout).log_softmax(-1)
        ids = torch.tensor(rollout.completion_ids)[:, None]
        torch.testing.assert_close(torch.tensor(rollout.logprobs), raw.gather(-1, ids)[:, 0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("targets", ["embed_tokens,q_proj", "q_proj"])
def test_an_adapter_on_the_embedding_is_not_forgotten(targets, prompts, pair, capsys):
    from poweropd_lite.base.config import load_config
    from poweropd_lite.engines.loop import LoopEngine
    from poweropd_lite.models.student import load_student

    student = load_student(load_config("bundled", lora_targets=targets), torch.device("cpu"), torch.float32)
    engine = LoopEngine(student, pair.stop_ids, say=print)
    assert ("its embedding has an adapter" in capsys.readouterr().out) == ("embed" in targets)
    with torch.no_grad():
        torch.manual_seed(0)
        for p in student.trainable().values():
            p.add_(torch.randn_like(p), alpha=0.05)
    engine.sync()
    for rollout in engine.sample([p.ids for p in prompts[:2]], Draws(0, 0, 0, (0, 1)), Sampling(), 15):
        raw = logits_of(student.model.eval(), rollout).log_softmax(-1)
        ids = torch.tensor(rollout.completion_ids)[:, None]
        torch.testing.assert_close(torch.tensor(rollout.logprobs), raw.gather(-1, ids)[:, 0], atol=2e-4, rtol=1e-4)


def deep_student():
    """A random Qwen3 of 16 layers in bfloat16, in which one rounding of the embeddings ends as 4% of the hidden states."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 16}
    config = Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    model = Qwen3ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.1)
    return Student(model.bfloat16(), torch.device("cpu"), torch.bfloat16)


def test_a_decoder_may_be_off_by_what_rounding_does_to_the_model_itself():
    """On a card the fast decoder refused Qwen3-1.7B's shape: it was 3.4% from the model, and both were 3.5% from float32."""
    student, said = deep_student(), []
    decoder = make_decoder(student, said.append)
    assert type(decoder) is FastDecoder and not said
    exact = Student(copy.deepcopy(student.model).float(), torch.device("cpu"), torch.float32)
    ids = (torch.arange(96) * 7 % 300).view(2, 48)

    def off(ours, theirs):
        return ((ours.float() - theirs.float())[:, 31:].norm() / theirs[:, 31:].float().norm()).item()

    with torch.no_grad():
        own, wanted = final_hidden(student.model, ids), final_hidden(exact.model, ids)
        decoder.sync()
        valid = torch.ones_like(ids, dtype=torch.bool)
        hidden = [decoder.prefill(ids[:, :1], valid[:, :1], 48)]
        for i in range(1, 48):
            hidden.append(decoder.step(ids[:, i], torch.full((2,), i), i, valid[:, : i + 1]))
    ours = torch.stack(hidden, 1)
    assert off(ours, own) > 0.03 and off(ours, wanted) == pytest.approx(off(own, wanted), rel=0.1)


def test_a_decoder_that_is_off_by_more_than_rounding_is_not_taken(monkeypatch):
    step = FastDecoder.step
    monkeypatch.setattr(FastDecoder, "step", lambda self, ids, position, *rest: step(self, ids, position - 1, *rest))
    said = []
    assert type(make_decoder(deep_student(), said.append)) is AnyDecoder
    assert "its hidden states differ by" in said[0] and "and may by 0.077" in said[0]
