"""Each row of docs/models.md: rollouts, teacher and update of a family against the model's own forward, a line at a time.

What is compared with has no padding, no cache, no chunked log-probs and no formula of a gradient: full logits and autograd.
"""

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, VOCAB, WINDOW, make_family
from transformers import AutoModelForCausalLM

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.modules import check_experts, check_modules
from poweropd_lite.engines import any_model
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.evaluate.serve import load_target
from poweropd_lite.evaluate.target import Target
from poweropd_lite.method.batch import Stops, micro_batches
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Draws
from poweropd_lite.method.update import Objective, accumulate, token_logprobs
from poweropd_lite.models.experts import fused_experts
from poweropd_lite.models.loading import load_causal_lm
from poweropd_lite.models.shape import read_config, read_shape
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.plan.trace import trace_rollout

CPU = torch.device("cpu")
OWN = {"llama", "qwen2", "qwen3"}  # that decode.py decodes
TARGETS = {
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "qwen3_moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
}
ATTENTION = TARGETS["qwen3_moe"] | {"gate_proj", "up_proj", "down_proj"}
TARGETS["qwen3_5_text"] = ATTENTION | {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"}


def token_rows(model, rollouts):
    """Log-probs of every completion's ids, from full logits, a line at a time."""
    rows = []
    for r in rollouts:
        ids, start = torch.tensor([r.prompt_ids + r.completion_ids]), len(r.prompt_ids)
        z = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float()
        rows.append(z.log_softmax(-1).gather(-1, ids[0, start:, None])[:, 0])
    return torch.cat(rows)


def samples(student, monkeypatch):
    """Rollouts of prompts of 1 to 20 ids; lines end at three of 96 ids, so some are dropped on the way."""
    monkeypatch.setattr(any_model, "SPARE", 4)  # so that windows are moved, and a prompt is longer than their room
    engine = LoopEngine(student, frozenset({5, 6, 7}), lambda said: None)
    engine.sync()
    generator = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(8, VOCAB, (n,), generator=generator).tolist()) for n in (3, 11, 20, 1, 6, 17, 9, 2)]
    return engine, engine.sample(prompts, Draws(0, 0, 0, tuple(range(len(prompts)))), Sampling(), 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family, tmp_path, monkeypatch):
    folder = make_family(family, tmp_path / "student")
    config = load_config(student=folder, lora_rank=2, gradient_checkpointing=True)
    student = load_student(config, CPU, torch.float32)
    adapted = {n.split(".lora_A")[0].rsplit(".", 1)[-1] for n in student.trainable() if ".lora_A." in n}
    assert adapted == TARGETS.get(family, ATTENTION)
    with torch.no_grad():
        for i, (name, p) in enumerate(student.trainable().items()):
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))

    engine, rollouts = samples(student, monkeypatch)
    assert isinstance(engine.decoder, any_model.AnyDecoder) == (family not in OWN)
    lengths = [len(r.completion_ids) for r in rollouts]
    assert len(set(lengths)) > 2 and max(lengths) == 24
    with torch.no_grad():
        own = token_rows(student.model.eval(), rollouts)
    torch.testing.assert_close(torch.tensor([x for r in rollouts for x in r.logprobs]), own, atol=1e-4, rtol=0)

    teacher = load_teacher(make_family(family, tmp_path / "teacher", seed=1), 32, CPU, torch.float32)
    batches = micro_batches(rollouts, 120, Stops("raw"), CPU)  # several lines each, and several of them
    assert 1 < len(batches) < len(rollouts)
    with torch.no_grad():
        log_p = token_rows(teacher.model, rollouts)
    torch.testing.assert_close(token_logprobs(teacher, batches, len(own), "teacher"), log_p, atol=1e-4, rtol=0)

    objective = Objective("power", {"alpha": 2.0}, stops=Stops("raw"))
    accumulate(student, teacher, rollouts, objective, 120)
    ours = {name: p.grad.clone() for name, p in student.trainable().items()}
    log_q = token_rows(student.model.train(), rollouts)
    loss = -((log_p.exp() ** 2 - log_q.detach().exp() ** 2) * log_q).sum()
    theirs = torch.autograd.grad(loss, list(student.trainable().values()))
    for (name, ours_here), exact in zip(ours.items(), theirs, strict=True):
        torch.testing.assert_close(ours_here, exact, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")

    packed = load_teacher(str(tmp_path / "teacher"), 4, CPU, torch.float32)
    with torch.no_grad():
        said = token_rows(packed.model, rollouts)
    torch.testing.assert_close(token_logprobs(packed, batches, len(own), "teacher"), said, atol=1e-4, rtol=0)
    assert 1e-3 < (said - log_p).abs().mean() < 0.5
    stays = [n for n, p in packed.model.named_parameters() if p.dim() > 1 and p.dtype != torch.uint8]
    assert not fused_experts(packed.model) and all(any(word in n for word in KEPT) for n in stays), stays


def test_gemma_2_s_cap_of_attention_scores_is_applied(tmp_path):
    """transformers' sdpa, its default, leaves it out without a word."""
    folder = make_family("gemma2", tmp_path, attn_logit_softcapping=1.0)
    ids = torch.arange(8, 40)[None]
    with torch.no_grad():
        ours = load_causal_lm(folder, "student", torch.float32)(input_ids=ids).logits
        ways = {"eager": 1e-5, "sdpa": 0.1}
        for way, off in ways.items():
            theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=way)(input_ids=ids).logits
            assert ((ours - theirs).abs().max() < off) == (way == "eager")


# Never packed: embeddings, heads, routers, convolutions.
KEPT = ("embed", "wte", "wpe", "lm_head", "mlp.gate.weight", "conv1d")


def stored_bytes(model):
    """What a packed model holds: parameters, scales of NF4 and scales of scales."""
    total = sum(p.nbytes for p in model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", getattr(module, "quant_state", None))
        if state is not None:
            tensors = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            total += sum(t.nbytes for t in tensors)
    return total


def test_a_mixtures_experts_are_counted_as_they_are_packed(tmp_path):
    folder = make_family("qwen3_moe", tmp_path)
    shape = read_shape(folder, "teacher")
    assert shape.experts == (4 * 2 * 64 * 64, 4 * 64 * 64) * 2  # of two layers: gate and up, down
    assert shape.multiplied == shape.linear_elements + sum(shape.experts) / 2  # two of four experts a token
    packed = load_teacher(folder, 4, CPU, torch.float32).model
    assert shape.weight_bytes(4, 4) == pytest.approx(stored_bytes(packed), rel=1e-3)
    assert shape.weight_bytes(4, 4) < 0.5 * (shape.weight_bytes(4, 4) + 4 * sum(shape.experts))


def test_what_a_mixture_leaves_in_16_bits_is_refused_or_said(tmp_path):
    side = SimpleNamespace(
        name="mix", role="student", config=read_config(make_family("qwen3_moe", tmp_path), "student")
    )
    modules = check_modules(load_config(student="mix"), side)
    assert "none on experts.gate_up_proj, experts.down_proj, gate.weight, which are no linear layers" in modules.found
    assert modules.told and modules.evidence["left out"]["experts.down_proj"] == 2 * 4 * 64 * 64
    teacher = SimpleNamespace(name="mix", role="teacher", config=side.config)
    assert check_experts(load_config(teacher_bits=4), side, teacher) == []
    both = check_experts(load_config(student_bits=4, teacher_bits=8), side, teacher)
    assert [f.level for f in both] == ["refusal", "refusal"] and both[0].mend == "type --student-bits 16"
    for unloaded in (
        {"teacher": "self", "teacher_prompt": "{prompt}!"},
        {"teacher": "http://localhost:8000", "teacher_name": "mix"},
    ):
        assert check_experts(load_config(student="mix", teacher_bits=8, **unloaded), side, teacher) == []
    assert both[0].evidence == {"parameters": 4, "gib": 2 * sum((4 * 2 * 64 * 64, 4 * 64 * 64) * 2) / 2**30}


def test_rows_that_a_cpu_unpacks_wrongly_are_refused(tmp_path):
    with pytest.raises(UserError, match="rows of 96 numbers, no multiple of 64"):
        load_teacher(make_family("llama", tmp_path, intermediate_size=96), 4, CPU, torch.float32)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"intermediate_size": 96}, "no multiple of 64"),
        ("qwen3_moe", {}, "4 fused parameters of experts, .*type --bits 16"),
    ],
)
def test_an_evaluation_in_4_bits_refuses_them_too(family, changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        load_target(Target("m", make_family(family, tmp_path, **changes)), 4, CPU, torch.float32)


def test_a_plan_counts_the_columns_of_a_window_alone(tmp_path):
    def traced(family, **changes):
        model_config = read_config(make_family(family, tmp_path / family, **changes), "student")
        return trace_rollout(model_config, load_config(lora_rank=2), torch.float32, 4, 16, 400)

    room, column = (
        WINDOW + any_model.SPARE,
        4 * 2 * 2 * 16 * 4,
    )  # of four lines: keys and values, two heads of 16, float32
    gap = traced("gemma3_text", sliding_window=1000) - traced("gemma3_text")
    assert gap == pytest.approx((416 - room) * column, rel=1e-2)
    shape = read_shape(str(tmp_path / "gemma3_text"), "student")
    assert shape.cache_bytes(4, 416, 4) == (416 + WINDOW) * column
    assert traced("qwen3_moe") > 2 * 416 * column and traced("qwen3_5_text") > 416 * column
