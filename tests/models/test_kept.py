"""What compiled layers keep for the backward, as planned, against layers that torch compiles and runs."""

import pytest
import torch
from families import make_family
from torch import Tensor

from poweropd_lite.base.config import load_config
from poweropd_lite.models import compiled
from poweropd_lite.models.shape import read_config
from poweropd_lite.models.student import load_student
from poweropd_lite.plan.kept import kept_less
from poweropd_lite.plan.memory import compiles
from poweropd_lite.plan.trace import fake_student

IDS = torch.zeros(5, 67, dtype=torch.long)


def kept(student, ids: Tensor) -> int:
    """Bytes of all storages that a forward keeps, but those of weights."""
    own, found = {p.untyped_storage()._cdata for p in student.model.parameters()}, dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        student.hidden(ids)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in found.items() if address not in own)


def written_and_compiled(config, monkeypatch) -> tuple[int, int]:
    """What a forward keeps with the layers as they are written, and compiled: the real partitioner's graphs, run op by op."""
    student, whole = load_student(config, torch.device("cpu"), torch.bfloat16), torch.compile
    written = kept(student, IDS)
    monkeypatch.setattr(torch, "compile", lambda *args, **kw: whole(*args, backend="aot_eager_decomp_partition", **kw))
    student.compiled = compiled.CompiledLayers(student.model, "student", True, print)
    kept(student, IDS)  # the first makes it
    return written, kept(student, IDS)


@pytest.mark.parametrize(("full", "most"), [(False, 0.85), (True, 0.75)])
def test_compiled_layers_keep_as_much_less_as_planned(full, most, monkeypatch):
    """Of the bundled student in bfloat16, on 5 x 67 ids."""
    config = load_config("bundled", full_finetune=full, gradient_checkpointing=False)
    with fake_student(read_config(config.student, "student", False), config, torch.bfloat16) as (fake, _):
        less = kept_less(fake)
    written, found = written_and_compiled(config, monkeypatch)
    assert found < most * written
    assert (written - found) / IDS.numel() == pytest.approx(less, rel=0.02)


def test_layers_that_keep_more_when_compiled_are_planned_with_more(monkeypatch, tmp_path):
    """GPT-NeoX's, by 4%: the sign of the difference is not taken for granted, and its norm has another name."""
    config = load_config("bundled", student=make_family("gpt_neox", tmp_path), gradient_checkpointing=False)
    with fake_student(read_config(config.student, "student", False), config, torch.bfloat16) as (fake, _):
        less = kept_less(fake)
    written, found = written_and_compiled(config, monkeypatch)
    assert found > 1.02 * written
    assert (written - found) / IDS.numel() == pytest.approx(less, rel=0.05)


def test_which_configs_compile_on_a_card():
    auto = load_config("bundled", compile="auto")
    assert compiles(auto) and not compiles(auto, fused=False)
    assert not compiles(load_config("bundled", compile="auto", loader="unsloth"))
    assert compiles(load_config("bundled", compile="on"), fused=False) and not compiles(load_config("bundled"))
