"""Killed at single writes, on failing disks, damaged: what benchmarks/reliability tries by the hundred, a few of each."""

import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "reliability"))

import kills
import trials
from conftest import run_evaluate, run_export

from poweropd_lite.base.errors import UserError
from poweropd_lite.evaluate.target import find_target
from poweropd_lite.reproduce.state import read_queue


@pytest.fixture(scope="module")
def folders():
    with trials.Folders() as made:
        yield made


@pytest.fixture(scope="module")
def small(folders):
    """A folder in which the small run of benchmarks/reliability was made, and its writes."""
    place = folders.new()
    return place, trials.writes_of(*trials.TRAIN, cwd=place)


def test_the_writes_of_a_training_are_seen(small):
    """Of three steps: libraries' own too, and what is removed."""
    writes = small[1]
    assert len(writes) > 150
    for each in (
        "safetensors run/checkpoints/.step_000003.tmp/optimizer.safetensors",
        "tokenizer run/.adapter.tmp/tokenizer.json",
        "write run/metrics.jsonl",
        "fsync run/checkpoints",
        "rename run/checkpoints/.step_000001.gone",
        "rename run/summary.json",
    ):
        assert each in writes


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        ("rmdir run/checkpoints/.step_000001.gone", "kill"),
        ("safetensors run/checkpoints/.step_000002.tmp/trained.safetensors", "cut"),
    ],
)
def test_a_run_killed_there_leaves_nothing_and_is_the_same(small, folders, write, fault):
    place, writes = small
    folder = folders.new()
    done = trials.run(*trials.TRAIN, cwd=folder, plan={"at": writes.index(write), "fault": fault})
    assert done.returncode == -signal.SIGKILL
    assert trials.run(*trials.RESUME, cwd=folder).returncode == 0
    assert trials.first_difference(trials.contents(place), trials.contents(folder)) is None


def test_a_disk_that_fails_as_it_is_asked_ends_in_one_message(small, folders):
    place, writes = small
    folder = folders.new()
    at = writes.index("tokenizer run/.adapter.tmp/tokenizer.json")
    done = trials.run(*trials.TRAIN, cwd=folder, plan={"at": at, "fault": "EIO"})
    assert trials.one_message(done) is None and "can't write the tokenizer into run/.adapter.tmp" in done.stderr
    assert not (folder / "run/adapter").exists() and not (folder / "run/.adapter.tmp").exists()


def test_a_queue_killed_before_its_state_is_there_begins_again(folders):
    """Its second start is killed, too, once it is at work: only whether it goes on is looked at."""
    folder = folders.new()
    done = trials.run(*kills.REPRODUCE, cwd=folder, plan={"at": 1, "fault": "kill"})
    assert done.returncode == -signal.SIGKILL and not (folder / "out/queue.json").exists()
    log = folder / "writes"
    done = trials.run(*kills.REPRODUCE, cwd=folder, plan={"at": 14, "fault": "kill", "log": str(log)})
    assert done.returncode == -signal.SIGKILL and "rename out/queue.json" in log.read_text()
    kills.settled(folder)  # what it began ends before its folder goes


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def flip(file, text, bit):
    """One bit of the first letter of `text` in a file."""
    content = bytearray(file.read_bytes())
    content[content.index(text.encode())] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "text"),
    [("adapter_config.json", "lora_alpha"), ("tokenizer.json", "added"), ("chat_template.jinja", "im_end")],
)
def test_a_bit_of_any_file_of_an_adapter_is_seen(run, name, text):
    flip(run / "adapter" / name, text, 1)
    with pytest.raises(UserError, match=f"{name} does not hold what manifest.json says; .* or remove .*manifest.json"):
        find_target(str(run))
    (run / "adapter" / "manifest.json").unlink()  # as the message says
    flip(run / "adapter" / name, chr(ord(text[0]) ^ 2) + text[1:], 1)
    assert find_target(str(run)).run_folder == run


@pytest.mark.parametrize(("to", "name"), [("adapter", "adapter_model.safetensors"), ("merged-16bit", "config.json")])
def test_a_bit_of_an_export_is_seen(run, to, name):
    done = run_export("run", "--to", to, "--output", "out", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    out = run.parent / "out"
    assert find_target(str(out)).name == str(out)
    content = bytearray((out / name).read_bytes())
    content[-3] ^= 1
    (out / name).write_bytes(content)
    done = run_evaluate("--model", "out", "--problems", "1", cwd=run.parent)
    assert trials.one_message(done) is None
    assert (
        f"out is not what its export wrote: {name} does not hold what export.json says; export it again" in done.stderr
    )


def test_a_digit_of_a_queue_is_seen(tmp_path):
    """Of its seconds, say, which no other check could know."""
    from poweropd_lite.reproduce.settings import split_settings
    from poweropd_lite.reproduce.settle import settle

    config, training, given = split_settings({"preset": "smoke", "output": str(tmp_path)})
    queue = settle(config, training, given, None, tmp_path)
    next(iter(queue.tasks.values())).seconds["train"] = 12.5
    queue.save()
    assert read_queue(tmp_path).tasks == queue.tasks
    file = tmp_path / "queue.json"
    file.write_text(file.read_text().replace("12.5", "12.4"))
    with pytest.raises(UserError, match="it does not hold what was written"):
        read_queue(tmp_path)
