"""Checkpoints and weights that do not hold what was saved: found by a digest or by what they are, never trained on."""

import json
import random
import shutil

import pytest
import torch
from conftest import run_evaluate, run_export, run_train
from safetensors.torch import load_file, save_file

from poweropd_lite.base.files import changed_since, write_manifest
from poweropd_lite.run.checkpoint import checkpoints

UNSCORED = ["--eval-every", "0"]


@pytest.fixture
def run(trained, tmp_path):
    """A run of four steps with checkpoints of steps 2 and 4, whose files may be changed."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def flip(file, byte, bit):
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


def on_to_five(run):
    return run_train("--resume", "run", "--steps", "5", cwd=run.parent)


def test_every_flipped_bit_is_found(run):
    """200 bits, drawn over all files of a checkpoint, its manifest too."""
    last, rng = checkpoints(run / "checkpoints")[-1], random.Random(0)
    files = sorted(last.iterdir())
    assert [file.name for file in files] == [
        "manifest.json", "optimizer.safetensors", "random.safetensors", "state.json", "trained.safetensors",
    ]  # fmt: skip
    assert changed_since(last) is None
    missed = []
    for _ in range(200):
        file = rng.choice(files)
        place = rng.randrange(file.stat().st_size), rng.randrange(8)
        flip(file, *place)
        if changed_since(last, [file.name for file in files[1:]]) is None:
            missed.append((file.name, *place))
        flip(file, *place)
    # A flipped bit of the manifest may leave the JSON as it is: in the white space between two lines.
    assert {name for name, *_ in missed} <= {"manifest.json"} and len(missed) <= 2


def test_the_checkpoint_before_is_taken_and_the_run_is_the_same(run, trained, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copytree(trained / "run", whole / "run")
    assert on_to_five(whole / "run").returncode == 0
    flip(run / "checkpoints/step_000004/trained.safetensors", 100_000, 6)
    done = on_to_five(run)
    assert done.returncode == 0, done.stderr
    said = "run/checkpoints/step_000004 is damaged: trained.safetensors does not hold what manifest.json says; set aside as"
    assert said in done.stdout and "and step_000002 is taken" in done.stdout
    assert "resuming run at step 2 of 5" in done.stdout
    assert (run / "checkpoints/damaged_step_000004/trained.safetensors").is_file()
    ours, theirs = (load_file(r / "adapter/adapter_model.safetensors") for r in (run, whole / "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_where_all_are_damaged_nothing_is_touched(run):
    for path in checkpoints(run / "checkpoints"):
        (path / "random.safetensors").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = on_to_five(run)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        done.stderr.count("random.safetensors is missing") == 2
        and "no checkpoint of run/checkpoints is whole" in done.stderr
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def nan(tensors):
    next(iter(tensors.values())).view(-1)[3] = torch.nan
    return tensors


def half(tensors):
    return {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}


def swapped(tensors):
    """The moments of two weights of other shapes, exchanged."""
    names = [name for name in tensors if name.endswith("|exp_avg")]
    first = names[0]
    other = next(name for name in names if tensors[name].shape != tensors[first].shape)
    return tensors | {first: tensors[other], other: tensors[first]}


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("trained", nan, "is not finite"),
        ("trained", half, "is torch.float16, and torch.float32 is trained"),
        ("optimizer", nan, "is not finite"),
        ("optimizer", swapped, "exp_avg of"),
        ("optimizer", lambda tensors: {f"x{name}": value for name, value in tensors.items()}, "which is not trained"),
    ],
)
def test_what_no_run_saves_is_found_under_a_manifest_that_fits(run, part, change, words):
    last = checkpoints(run / "checkpoints")[-1]
    file = last / f"{part}.safetensors"
    save_file({name: value.contiguous().clone() for name, value in change(load_file(file)).items()}, file)
    write_manifest(last, [file for file in last.iterdir() if file.name != "manifest.json"])
    done = on_to_five(run)
    assert done.returncode == 0 and "step_000004 is damaged" in done.stdout and words in done.stdout, done.stderr


def test_a_state_that_can_not_be_read_is_damage(run):
    last = checkpoints(run / "checkpoints")[-1]
    state = json.loads((last / "state.json").read_text())
    state["state"]["of_a_newer_version"] = 1
    (last / "state.json").write_text(json.dumps(state))
    write_manifest(last, [file for file in last.iterdir() if file.name != "manifest.json"])
    done = on_to_five(run)
    assert done.returncode == 0 and "step_000004 is damaged" in done.stdout and "of_a_newer_version" in done.stdout


def test_weights_that_were_handed_over_and_changed_since_are_refused_until_handed_over_again(run):
    file = run / "adapter/adapter_model.safetensors"
    flip(file, file.stat().st_size - 1, 6)  # of a last number's exponent
    few = ["--problems", "2", "--n", "1"]
    for done in (
        run_evaluate("--model", "run", *few, cwd=run.parent),
        run_export("run", "--to", "adapter", cwd=run.parent),
    ):
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "run/adapter is not what its training handed over: adapter_model.safetensors" in done.stderr
        assert "python -m poweropd_lite.train --resume run hands over again" in done.stderr
    assert run_train("--resume", "run", cwd=run.parent).returncode == 0
    assert run_evaluate("--model", "run", *few, cwd=run.parent).returncode == 0


def test_an_old_checkpoint_is_renamed_before_it_is_removed(run, monkeypatch):
    """Half of one would be called damaged."""
    from poweropd_lite.run import checkpoint

    removed = []
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path: removed.append((path.name, path.is_dir())))
    checkpoint._prune(run / "checkpoints", 1)
    assert removed == [(".step_000002.gone", True)]
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step_000004"]


def test_a_state_of_a_newer_version_is_said_to_be_one(run):
    for path in checkpoints(run / "checkpoints"):
        saved = json.loads((path / "state.json").read_text())
        saved["state"]["warp"] = 9
        (path / "state.json").write_text(json.dumps(saved))
        write_manifest(path, [file for file in path.iterdir() if file.name != "manifest.json"])
    done = on_to_five(run)
    assert done.returncode == 2 and "it holds warp, which this version does not know" in done.stderr
