"""Families that cap, scale or bias their logits, made at random: log-probs and gradients are those of the models' own forwards."""

import pytest
import torch
import transformers

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.engines.draw import next_token
from poweropd_lite.kernels.products import Head, float_logits
from poweropd_lite.method.batch import Stops, micro_batches
from poweropd_lite.method.logprobs import Sampling, kept_ids
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import Objective, accumulate, token_logprobs
from poweropd_lite.models.adapter import adapter_modules, with_adapter
from poweropd_lite.models.loading import check_head, head_of
from poweropd_lite.models.logits import logit_form
from poweropd_lite.models.probe import probe
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher

CPU = torch.device("cpu")
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
FAMILIES = {  # what the config says, and the head's scale, cap, and whether it has a bias
    "gemma2": ({"final_logit_softcapping": 2.0, "head_dim": 8, "sliding_window": 64}, (1.0, 2.0, False)),
    "granite": ({"logits_scaling": 0.25}, (4.0, None, False)),
    "cohere": ({"logit_scale": 0.625}, (0.625, None, False)),
    "phi": ({}, (1.0, None, True)),
}
ROLLOUTS = [
    Rollout((5, 9, 11), (20, 3, 40, 7, 33, 12), (0.0,) * 6, "length"),
    Rollout((8,), (31, 2), (0.0,) * 2, "stop"),
    Rollout((14, 15), (60, 11, 52, 6), (0.0,) * 4, "length"),
]
CUT = Sampling(temperature=0.8, top_k=20, top_p=0.9, forbidden=torch.tensor([3, 11]))


def made(family, dtype=torch.float32):
    """A model with likely tokens: a cap of 2 bends most of its logits."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES, **FAMILIES[family][0])
    model = transformers.AutoModelForCausalLM.from_config(config).eval().to(dtype)
    with torch.no_grad():
        for parameter in model.get_output_embeddings().parameters():
            parameter.normal_(0, 0.4)
    return model


def own_logits(model):
    """The model's own logits of the tokens in the loss: every one that stands in ROLLOUTS, and those ids [N]."""
    rows = []
    for r in ROLLOUTS:
        logits = model(input_ids=torch.tensor([r.prompt_ids + r.completion_ids])).logits[0]
        rows.append(logits[len(r.prompt_ids) - 1 : -1])
    return torch.cat(rows), torch.tensor([i for r in ROLLOUTS for i in r.completion_ids])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_log_probs_are_those_of_the_model_s_own_forward(family):
    model = made(family)
    check_head(model, family)
    head = head_of(model)
    assert (head.scale, head.cap, head.bias is not None) == FAMILIES[family][1] and head.weight.shape == (61, 32)
    logits, ids = own_logits(model)
    wanted = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    plain = (model.get_decoder()(input_ids=torch.tensor([[5, 9, 11]])).last_hidden_state @ head.weight.T)[0]
    assert (
        plain.log_softmax(-1) - model(input_ids=torch.tensor([[5, 9, 11]])).logits[0].log_softmax(-1)
    ).abs().max() > 0.5
    batches = micro_batches(ROLLOUTS, 12, Stops("raw"), CPU)
    assert len(batches) == 2  # of the two micro-batches one has padding
    torch.testing.assert_close(token_logprobs(Teacher(model), batches, len(ids), "teacher"), wanted, atol=1e-5, rtol=0)
    # Drawing, and what export compares models by.
    hidden = model.get_decoder()(input_ids=torch.tensor([[5, 9, 11, 20]])).last_hidden_state[0]
    drawn, log_q = next_token(hidden, head, Sampling(), torch.full((4,), 0.5, dtype=torch.float64))
    every = model(input_ids=torch.tensor([[5, 9, 11, 20]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(log_q, every.gather(-1, drawn[:, None])[:, 0], atol=1e-5, rtol=0)
    said = torch.tensor(probe(model, [[5, 9, 11, 20]]).logprobs[0])
    torch.testing.assert_close(said, every.topk(8).values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reward", ["power", "full_kl"])
@pytest.mark.parametrize("trains", ["adapter", "adapter and head", "everything"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_update_s_gradient_is_autograd_s_on_full_logits(family, trains, reward):
    """The teacher is the next family. Scores: of what was sampled with top-k, top-p and forbidden ids; untruncated for the head."""
    base = made(family)
    if trains == "everything":
        model = base.requires_grad_(True)
    else:
        whole = "lm_head" if "head" in trains else ""
        model = with_adapter(base, load_config(lora_rank=2, modules_to_save=whole))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                parameter.add_(0.1 * torch.randn_like(parameter))
    names = list(FAMILIES)
    teacher = made(names[(names.index(family) + 1) % len(names)]).requires_grad_(False)
    student, score = Student(model, CPU, torch.float32), "full" if "head" in trains else "sampled"
    assert any("bias" in n and "lm_head" in n for n in student.trainable()) == (family == "phi" and trains != "adapter")
    objective = Objective(reward, {"alpha": 0.5} if reward == "power" else {}, CUT, score, Stops("raw"))
    found = accumulate(student, Teacher(teacher), ROLLOUTS, objective, 12)
    ours = torch.cat([p.grad.flatten() for p in student.trainable().values()])

    z, ids = own_logits(model)
    with torch.no_grad():
        log_p = own_logits(teacher)[0].log_softmax(-1)
    log_q = z.log_softmax(-1)
    if reward == "full_kl":
        value = (log_q.exp() * (log_q - log_p)).sum()
    else:
        paid = ((0.5 * log_p).exp() - (0.5 * log_q).exp()).detach().gather(-1, ids[:, None])
        kept = kept_ids(z.detach(), CUT).scatter(-1, ids[:, None], True)
        cut = (z / 0.8).masked_fill(~kept, -torch.inf).log_softmax(-1)
        value = -(paid * (cut if score == "sampled" else log_q).gather(-1, ids[:, None])).sum()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(student.trainable().values()))])
    assert found.loss.item() == pytest.approx(value.item(), rel=1e-5, abs=1e-5)
    assert (ours - wanted).abs().max() < 1e-5 * wanted.abs().max().clamp_min(1.0)
    assert (ours - wanted).norm() < 1e-5 * wanted.norm()


def test_a_head_that_is_switched_off_with_its_adapter_takes_its_bias_along():
    model = with_adapter(made("phi"), load_config(lora_rank=2, modules_to_save="lm_head"))
    student = Student(model, CPU, torch.float32)
    with torch.no_grad():
        student.head.bias.add_(1.0)
    with student.without_adapter():
        torch.testing.assert_close(student.head.bias + 1.0, model.base_model.model.lm_head.modules_to_save.default.bias)


def test_a_head_of_another_name_gets_no_adapter_and_is_named_where_one_is_asked_for():
    """BioGPT's is output_projection."""
    settings = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    config = transformers.AutoConfig.for_model("biogpt", **settings)

    def adapted(**flags):
        model = with_adapter(transformers.AutoModelForCausalLM.from_config(config), load_config(lora_rank=2, **flags))
        return {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}

    layers = {"fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"}
    assert adapter_modules(transformers.AutoModelForCausalLM.from_config(config), load_config()) == (sorted(layers), [])
    assert adapted() == layers
    mend = r"the head \(output_projection\) is not supported; train the head whole: --modules-to-save output_projection"
    with pytest.raises(UserError, match=mend):
        adapted(lora_targets="q_proj,output_projection")
    assert adapted(lora_targets="q_proj", modules_to_save="output_projection") == {"q_proj", "output_projection"}


def test_names_that_a_family_reads_and_names_that_it_does_not():
    """HyperCLOVA X multiplies by what Granite divides by; Qwen3 and MPT read neither name, whatever a config holds."""

    def form(family, **names):
        return logit_form(transformers.AutoConfig.for_model(family, **names))

    assert form("granite", logits_scaling=8.0) == (0.125, None)
    assert form("hyperclovax", logits_scaling=8.0) == (8.0, None)
    assert form("qwen3", logits_scaling=8.0, final_logit_softcapping=30.0) == (1.0, None)
    assert form("mpt", logit_scale="inv_sqrt_d_model") == (1.0, None)
    assert form("gemma2") == (1.0, 30.0) and form("gemma2", final_logit_softcapping=None) == (1.0, None)
    assert form("cohere2") == (0.0625, None)
    assert form("recurrent_gemma", logits_soft_cap=30.0) == (1.0, 30.0)


def test_logits_made_in_another_way_are_refused():
    model = made("granite")
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: forward(x).abs()
    with pytest.raises(UserError, match="a way of its own, which the chunked log-probs don't know"):
        check_head(model, "odd")


def test_worked_values_of_the_formula():
    """h W^T + b is 1, -0.5, 3: times 2, then capped at 4: 4 tanh(0.5), 4 tanh(-0.25), 4 tanh(1.5)."""
    head = Head(torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([0.5, 0.0, 2.0]), 2.0, 4.0)
    logits = float_logits(torch.tensor([[0.5]]), head)[0]
    assert logits.tolist() == pytest.approx([1.848469 - 3.620593, -0.979675 - 3.620593, 0.0], abs=1e-5)
