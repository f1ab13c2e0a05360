"""An offloaded teacher: the resident one's numbers bit for bit, one teacher of bytes a step, two layers on the device."""

import pytest
import torch

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.host import check_host
from poweropd_lite.method.batch import Stops, micro_batches
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.update import Objective, accumulate, token_logprobs
from poweropd_lite.models.shape import read_shape
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.rehearse.gradients import RememberingTeacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[4, 32])
def both(request):
    """The bundled teacher twice in some bits: resident and offloaded, of which all bytes brought so far are forgotten."""
    resident, offloaded = (load_teacher("bundled", request.param, CPU, torch.float32, offload=o) for o in (False, True))
    return request.param, resident, offloaded


def score(teacher, rollouts, budget):
    batches = micro_batches(rollouts, budget, Stops("raw"), CPU)
    return token_logprobs(teacher, batches, sum(len(b.order) for b in batches), "teacher"), len(batches)


def test_all_micro_batches_are_scored_by_one_teacher_of_bytes(both, rollouts):
    bits, resident, offloaded = both
    layers = [p for p in resident.model.model.layers.parameters()]
    stored = sum(p.nbytes for p in layers)  # of the four layers; in 4 bits scales and tables are beside the weights
    assert offloaded.streamed.host_bytes == pytest.approx(stored, rel=0.2 if bits == 4 else 0)
    for budget, many in ((8192, 1), (240, 6)):
        before = offloaded.streamed.bytes_brought
        mine, batches = score(offloaded, rollouts, budget)
        assert batches == many and torch.equal(mine, score(resident, rollouts, budget)[0])
        assert offloaded.streamed.bytes_brought - before == offloaded.streamed.host_bytes
    assert torch.equal(
        offloaded.hidden(torch.arange(9)[None]), resident.hidden(torch.arange(9)[None])
    )  # its own forward


def test_two_layers_and_the_rest_are_all_that_is_on_the_device(both):
    """Counted by storages, and by plan from the config alone."""
    bits, _, offloaded = both
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in offloaded.model.parameters()}
    held = sum(storage.nbytes() for storage in storages.values())
    shape = read_shape("bundled", "teacher")
    planned, host = shape.offloaded_bytes(bits, 4)
    assert planned == pytest.approx(held, rel=0.005) and host == pytest.approx(offloaded.streamed.host_bytes, rel=0.005)
    assert len(storages) == 2 + 2  # two buffers; the tied embedding, and the last norm
    assert planned + host - shape.weight_bytes(bits, 4) == 2 * shape.layer.weight_bytes(bits, 4)


@pytest.mark.parametrize("reward", ["power", "full_kl"])
def test_a_step_has_the_same_gradient(both, rollouts, reward):
    _, *teachers = both
    config = load_config("bundled", gradient_checkpointing=False)
    objective = Objective(reward, {"alpha": 10.0} if reward == "power" else {}, Sampling())
    found = []
    for teacher in teachers:
        student = load_student(config, CPU, torch.float32)
        tokens = accumulate(student, teacher, rollouts[:6], objective, 480, teacher_budget=240).tokens
        found.append([tokens.log_p, *(p.grad for p in student.trainable().values())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and found[0][0].min() < -0.5


def test_hidden_states_that_are_kept_are_not_streamed_again(both):
    _, resident, offloaded = both
    teacher, ids = (
        RememberingTeacher(offloaded.model, streamed=offloaded.streamed),
        [torch.arange(n)[None] for n in (9, 5, 9)],
    )
    before = offloaded.streamed.bytes_brought
    for _ in range(2):
        for mine, theirs in zip(teacher.hiddens(ids), resident.hiddens(ids), strict=True):
            assert torch.equal(mine, theirs)
    assert offloaded.streamed.bytes_brought - before == offloaded.streamed.host_bytes


SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "head_dim": 8},  # layers 1 and 2
    "mistral": {"sliding_window": 6},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
}


def made(family, folder, **sizes):
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **sizes})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])
def test_families_and_windows(family, tmp_path):
    """20 tokens, of which a window of 6 hides most; layers of both kinds in one model."""
    name, ids = made(family, tmp_path), [torch.arange(60).view(3, 20), torch.arange(9)[None]]
    resident, offloaded = (load_teacher(name, 32, CPU, torch.float32, offload=o) for o in (False, True))
    assert all(map(torch.equal, resident.hiddens(ids), offloaded.hiddens(ids)))
    if family == "qwen3":
        assert resident.model.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]


def test_packed_experts_are_brought_too(tmp_path):
    """A mixture in 4 bits: its experts, and the scales and tables of all that is packed, lie in the two buffers."""
    name = made("qwen3_moe", tmp_path, hidden_size=64, moe_intermediate_size=64, head_dim=16)  # rows of whole blocks
    ids = [torch.arange(40).view(2, 20)] * 2
    resident, offloaded = (load_teacher(name, 4, CPU, torch.float32, offload=o) for o in (False, True))
    assert all(map(torch.equal, resident.hiddens(ids), offloaded.hiddens(ids)))
    experts, buffers = offloaded.model.model.layers[1].mlp.experts.parametrizations, offloaded.streamed._buffers
    packed = experts.gate_up_proj.original, experts.gate_up_proj[0].quant_state.absmax
    assert [part.untyped_storage().data_ptr() for part in packed] == [buffers[1].data_ptr()] * 2


def test_other_decoders_are_refused(tmp_path):
    name = made("gpt2", tmp_path)
    (finding,) = check_host(load_config(student=name, teacher=name, teacher_offload=True), 2**40)
    assert finding.level == "refusal" and "type --no-teacher-offload" in finding.found
    with pytest.raises(UserError, match="takes a decoder of embedding, layers, norm and head apart"):
        load_teacher(name, 32, CPU, torch.float32, offload=True)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UserError, match="teacher_offload can't take the layers of teacher_bits 8"):
        load_config("bundled", teacher_offload=True, teacher_bits=8)
    config = load_config("bundled", teacher_offload=True, teacher_bits=32)
    assert check_host(load_config("bundled")) == []
    assert [f.level for f in (*check_host(config, 7_085_568), *check_host(config, 7_085_567))] == ["ok", "refusal"]
    (finding,) = check_host(config, 10**6)
    assert "0.0 are free there" in finding.found and finding.mend.startswith("type --teacher-bits 4, or a smaller")
