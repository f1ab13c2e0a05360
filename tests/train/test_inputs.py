"""A run that is resumed on other data, weights or templates than it was trained on: seen, named, refused or taken on the record."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import DATA, TINY, edit, quick_flags, run_train
from safetensors.torch import load_file, save_file

from poweropd_lite.base.config import load_config
from poweropd_lite.evaluate.target import find_target
from poweropd_lite.run.folder import whole_names


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run of two steps on files of its own: problems.jsonl, student/ and teacher/ beside it."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copyfile(DATA, folder / "problems.jsonl")
    for role in ("student", "teacher"):
        shutil.copytree(TINY / role, folder / role)
    flags = quick_flags(steps=2, batch_size=4, data="problems.jsonl", eval_every=0, eval_problems=2)
    done = run_train(
        "--config", "bundled", *flags, "--student", "student", "--teacher", "teacher", "--output", "run", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    return tmp_path


def resume(folder, *flags):
    return run_train("--resume", "run", "--steps", "3", *flags, cwd=folder)


def drop_a_row(folder):
    lines = (folder / "problems.jsonl").read_text().splitlines(keepends=True)
    (folder / "problems.jsonl").write_text("".join(lines[:-1]))


def change_a_word(folder):
    text = (folder / "problems.jsonl").read_text()
    (folder / "problems.jsonl").write_text(text.replace("Compute", "Work out", 1))


def nudge(folder):
    file = folder / "student/model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 0.5
    save_file(weights, file, {"format": "pt"})


def other_template(folder):
    for role in ("student", "teacher"):
        file = folder / role / "chat_template.jinja"
        file.write_text("{{ 'Now: ' }}" + file.read_text())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_a_row, ["data: problems.jsonl (", "prompts: 256 then, 255 now"]),
        (change_a_word, ["data: problems.jsonl (", "prompts: other tokens in these 256"]),
        (nudge, ["student's files: model.safetensors"]),
        (lambda f: edit("config.json", lambda c: c | {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})(f / "teacher"), ["teacher's files: config.json"]),
        (other_template, ["student's tokenizer or chat template", "prompts: other tokens"]),
    ],
    ids=["a row less", "a word", "a weight", "a setting of the teacher", "the template"],
)  # fmt: skip
def test_what_changed_is_named_and_refused_and_taken_when_asked(folder, change, words):
    change(folder)
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    refused = resume(folder)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert [word for word in words if word not in refused.stderr] == [], refused.stderr
    assert "--accept-changes" in refused.stderr
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before
    taken = resume(folder, "--accept-changes")
    assert taken.returncode == 0 and f"accepted: {words[0]}" in taken.stdout, taken.stderr
    record = json.loads((folder / "run/inputs.json").read_text())["changed"]
    assert [change["step"] for change in record] == [2] and any(words[0] in line for line in record[0]["what"])
    assert resume(folder, "--steps", "4").returncode == 0  # it is the run's own now


def test_files_that_were_only_touched_or_moved_are_the_same(folder):
    file = folder / "student/model.safetensors"
    shutil.copyfile(file, folder / "copy")
    file.unlink()
    shutil.copyfile(folder / "copy", file)  # of another time
    (folder / "problems.jsonl").rename(folder / "moved.jsonl")
    gone = resume(folder)
    assert gone.returncode == 2 and "no file of problems at problems.jsonl; type --data with" in gone.stderr
    done = resume(folder, "--data", "moved.jsonl")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run/inputs.json").read_text())["changed"] == []
    assert "data: moved.jsonl" in (folder / "run/config.yaml").read_text()


def test_a_run_of_relative_names_is_found_from_another_folder(folder, tmp_path_factory):
    elsewhere, run = tmp_path_factory.mktemp("elsewhere"), folder / "run"
    (elsewhere / "problems.jsonl").write_text('{"problem": "another file", "answer": "0"}\n')  # no data of the run's
    target = find_target(str(run))
    assert target.base == target.run.student == str(folder / "student")
    assert (target.run.teacher, target.run.data) == (str(folder / "teacher"), str(folder / "problems.jsonl"))
    done = run_train("--resume", str(run), "--steps", "3", cwd=elsewhere)
    assert done.returncode == 0 and "resuming" in done.stdout, done.stderr
    assert json.loads((run / "inputs.json").read_text())["changed"] == []
    again = resume(folder, "--steps", "3")  # at home again
    assert again.returncode == 0 and "it has taken all its steps: --steps 6 goes on" in again.stdout
    run.rename(folder / "moved")
    assert find_target(str(folder / "moved")).run.student == str(folder / "student")


def test_benchmarks_are_found_from_another_folder_too(tmp_path, monkeypatch):
    (tmp_path / "math500").mkdir()  # a known name stays one
    (tmp_path / "own.jsonl").write_text("")
    (tmp_path / "run").mkdir()
    config = load_config("bundled", eval_benchmarks="math500, own.jsonl,none.jsonl")
    assert whole_names(tmp_path / "run", config) == {}  # where it was trained is not known
    (tmp_path / "run/inputs.json").write_text(json.dumps({"home": ".."}))
    assert whole_names(tmp_path / "run", config) == {"eval_benchmarks": f"math500,{tmp_path}/own.jsonl,none.jsonl"}
    (tmp_path / "copy").symlink_to(tmp_path / "run")
    assert whole_names(tmp_path / "copy", config)["eval_benchmarks"].startswith(f"math500,{tmp_path}/own.jsonl")
    monkeypatch.chdir(tmp_path)
    assert whole_names(Path("run"), config) == {}


def test_the_flag_is_for_a_resume_alone(tmp_path):
    done = run_train("--config", "bundled", "--accept-changes", cwd=tmp_path)
    assert done.returncode == 2 and "--accept-changes is for --resume" in done.stderr
