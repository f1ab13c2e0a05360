"""Compiled decoder layers: one code for all layers and lengths, the numbers of the model as it is written, and of a resumed run."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.models import compiled
from poweropd_lite.models.compiled import choose_compile
from poweropd_lite.models.loading import model_body
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.run.metrics import set_compiling_apart

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPES = [(3, 17), (2, 40), (5, 5)]


@pytest.fixture
def anew():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def eager(anew, monkeypatch):
    """Traced as ever, and run as written: no compiler is called."""
    monkeypatch.setattr(compiled.torch, "compile", partial(torch.compile, backend="eager"))


def load(dtype=torch.float32, **settings):
    """The bundled student with an adapter that is not zero."""
    student = load_student(load_config("bundled", **settings), CPU, dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student


def learnt(student, shape):
    """Hidden states and every gradient, of ids [B, T]."""
    for parameter in student.trainable().values():
        parameter.grad = None
    hidden = student.hidden(torch.arange(shape[0] * shape[1]).view(shape) % 400)
    (hidden.float() * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
    return hidden.detach(), torch.cat([p.grad.flatten() for p in student.trainable().values()])


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"student_bits": 4}], ids=str)
def test_an_adapter_whose_input_is_not_cast_gives_the_same_bits(settings):
    student = load(torch.bfloat16, **settings)
    found = learnt(student, (3, 40))
    switched = [m for m in student.model.modules() if hasattr(m, "cast_input_dtype_enabled")]
    assert len(switched) == 7 * 3 and not any(m.cast_input_dtype_enabled for m in switched)
    for module in switched:
        module.cast_input_dtype_enabled = True
    for ours, peft in zip(found, learnt(student, (3, 40)), strict=True):
        assert ours.abs().max() > 0 and torch.equal(ours, peft)
    full = load(torch.float32)
    assert all(getattr(m, "cast_input_dtype_enabled", True) for m in full.model.modules())


def test_a_resumed_student_computes_the_same_whichever_length_comes_first(anew, monkeypatch):
    """Compiled for the CPU, with checkpointing; what torch sees first is the same in both sittings."""
    monkeypatch.setattr(
        torch._inductor.config.aot_inductor, "debug_compile", True
    )  # the C++ compiler need not optimise
    settings = {"gradient_checkpointing": True, "lora_targets": "q_proj,down_proj"}
    plain = load(**settings)
    names, said = list(plain.model.state_dict()), []
    wanted = {shape: learnt(plain, shape) for shape in SHAPES}
    sittings = []
    for order in (SHAPES, SHAPES[::-1]):
        torch._dynamo.reset()
        student = load(**settings)
        student.compile(said.append)
        sittings.append({shape: learnt(student, shape) for shape in order})
        assert list(student.model.state_dict()) == names
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]  # one for all layers, a sitting
    assert len(said) == 2 and said[0].startswith("compiled the student's layers for several lines in ")
    assert student.compiled.seconds > 0
    for shape, (hidden, gradient) in wanted.items():
        for sitting in sittings:
            torch.testing.assert_close(sitting[shape][0], hidden, atol=1e-4, rtol=1e-4)
            assert (sitting[shape][1] - gradient).norm() < 1e-4 * gradient.norm()
        assert torch.equal(sittings[0][shape][0], sittings[1][shape][0])
        assert torch.equal(sittings[0][shape][1], sittings[1][shape][1])
    with torch.no_grad():  # as the guard and evaluation ask
        assert torch.equal(student.hidden(torch.arange(40).view(2, 20)), plain.hidden(torch.arange(40).view(2, 20)))
    twin = copy.deepcopy(student.model)
    assert all(layer._compiled_call_impl is None for layer in model_body(twin).layers)


@pytest.mark.parametrize("settings", [{}, {"student_bits": 4}, {"full_finetune": True}], ids=str)
def test_each_kind_of_student_is_two_graphs(eager, settings):
    """One for a single line and one for several, for three layers and all lengths; no break."""
    student = load(torch.bfloat16, gradient_checkpointing=False, **settings)
    wanted = {shape: learnt(student, shape) for shape in [*SHAPES, (1, 30)]}
    student.compile(print)
    for shape, expected in wanted.items():
        for ours, plain in zip(learnt(student, shape), expected, strict=True):
            assert (ours - plain).norm() < 0.01 * plain.norm()
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_a_4_bit_teacher_is_one_graph(eager):
    teacher = load_teacher("bundled", 4, CPU, torch.bfloat16)
    ids = [torch.arange(b * t).view(b, t) % 400 for b, t in SHAPES]
    wanted = [teacher.hidden(i) for i in ids]
    teacher.compile(print)
    assert all(torch.equal(teacher.hidden(i), w) for i, w in zip(ids, wanted, strict=True))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_layers_that_do_not_compile_run_as_they_are(anew, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiled.torch, "compile", partial(torch.compile, backend=broken))
    student, said = load(), []
    wanted = learnt(student, (3, 17))
    student.compile(said.append)
    assert all(torch.equal(a, b) for a, b in zip(learnt(student, (3, 17)), wanted, strict=True))
    assert len(said) == 1 and "can't be compiled here" in said[0] and "no compiler here" in said[0]


def test_a_try_that_ran_out_of_memory_counts_its_seconds(anew, monkeypatch):
    """Seven seconds, and five of the second one, which works."""
    monkeypatch.setattr(compiled, "time", SimpleNamespace(monotonic=iter([0.0, 7.0, 10.0, 15.0]).__next__))
    student, tries = load(), iter([torch.OutOfMemoryError("CUDA out of memory")])
    student.compile(lambda said: None)

    def hidden(ids):
        for error in tries:
            raise error
        return student.head.weight[ids] + 0 * next(iter(student.trainable().values())).sum()

    with pytest.raises(torch.OutOfMemoryError):
        student.compiled.make(2, hidden)
    student.compiled.make(2, hidden)
    assert student.compiled.seconds == 12


def test_compiling_is_set_apart_from_the_pace_of_the_try_that_worked():
    """The first try compiled the student for 30 s and ran out of memory; the second compiled the teacher for 5 of its 9 s."""
    metrics = {"time/student": 2.0, "time/teacher": 9.0}
    before, last_try = {"student": 100.0, "teacher": 0.0}, {"student": 130.0, "teacher": 0.0}
    set_compiling_apart(metrics, before, last_try, {"student": 130.0, "teacher": 5.0})
    assert metrics == {"time/student": 2.0, "time/teacher": 4.0, "time/compile": 35.0}


def test_auto_is_on_where_there_is_triton_and_a_card(monkeypatch):
    for there, found in ((True, "on"), (False, "off")):
        monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name, there=there: there or None)
        assert choose_compile("auto", "peft", CUDA) == found
    assert choose_compile("auto", "peft", CPU) == "off" and choose_compile("on", "peft", CPU) == "on"
    assert choose_compile("auto", "unsloth", CUDA) == "off"
    with pytest.raises(UserError, match="--compile off"):
        choose_compile("on", "unsloth", CUDA)


def test_yaml_reads_on_and_off(tmp_path):
    for word in ("on", "off", "auto"):
        (tmp_path / "c.yaml").write_text(f"student: bundled\nteacher: bundled\ncompile: {word}\n")
        assert load_config(tmp_path / "c.yaml", data="bundled").compile == word
    with pytest.raises(UserError, match="teacher_token_budget 10 is less"):
        load_config("bundled", teacher_token_budget=10)
