"""examples/loop.py: the method on one page trains as `train` does."""

import importlib.util
from pathlib import Path

import torch
from conftest import DATA, run_train
from safetensors.torch import load_file

from poweropd_lite.base.config import load_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "loop.py"


def test_the_example_learns_what_train_learns(tmp_path, monkeypatch, capsys):
    """Three steps of each, from the same prompts, give the same adapter, bit for bit."""
    spec = importlib.util.spec_from_file_location("example_loop", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    students, load = [], example.load_student
    monkeypatch.setattr(example, "load_student", lambda *args: students.append(load(*args)) or students[0])
    monkeypatch.setattr(example, "load_config", lambda name, **changes: load_config(name, **changes, data=DATA))
    score = example.main(steps=3, problems=8)
    said = capsys.readouterr().out
    assert f"step 3: {score:.1%} of 8 held-out problems" in said
    flags = ["--config", "bundled", "--steps", "3", "--data", DATA, "--eval-benchmarks", "none", "--eval-every", "0"]
    done = run_train(*flags, "--threads", "1", "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    ours = {name.replace(".default.", "."): p.detach() for name, p in students[0].trainable().items()}
    assert ours.keys() == trained.keys() and all(torch.equal(ours[name], trained[name]) for name in ours)
