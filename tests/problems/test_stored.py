"""Prompts of a large file, kept on disk: the same as read, made anew where anything differs, whole or absent, and not in memory."""

import json
import os
import signal
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.stop import Stopped
from poweropd_lite.problems import reading, stored
from poweropd_lite.problems.prompts import step_indices
from poweropd_lite.problems.reading import hold_out, load_prompts, say_skipped
from poweropd_lite.problems.stored import Stored, ids_digests, tokens_used
from poweropd_lite.run.inputs import Inputs
from poweropd_lite.run.session import prepare


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """Keeps the prompts of every file, in a folder of the test's own; returns it."""
    monkeypatch.setattr(stored, "LARGE", 1)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "poweropd_lite" / "prompts" / "1"


def write(path: Path, count: int = 600) -> Path:
    """Writes rows of which some can't be used, some are copies, and some have their answer in a box or none."""
    rows = [{"problem": f"What is {n % 500} + 1?", "answer": [str(n), f"So \\boxed{{{n}}}, I think, after all.", None][n % 3]} for n in range(count)]  # fmt: skip
    rows[7] |= {"problem": "word " * 200}
    rows[8] |= {"problem": "word " * 300}
    rows[40] = {"q": "x"}
    rows[41] = {"question": "Café, 東京 or 😀?", "error": "1e-1", "answer": "2.5"}
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join([*lines[:300], "{not json", *lines[300:]]))
    return path


def load(path: Path, pair, **settings):
    """Returns prompts, what is said of them, and what is said first: of where they are kept, if they are."""
    said: list[str] = []
    config = load_config("bundled", data=str(path), hold_out=20, **settings)
    prompts, skipped = load_prompts(config, pair.tokenizer, say=said.append)
    say_skipped(skipped, len(prompts), config.data, said.append)
    return prompts, [line for line in said if "its prompts are" not in line and ": rows " not in line], said[0]


def folders(kept: Path) -> list[str]:
    return sorted(file.name for file in kept.iterdir() if file.suffix != ".lock")


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, pair, kept, monkeypatch):
    path, real = write(tmp_path / "own.jsonl"), reading.counted_rows

    def counted_rows(*args):
        found = real(*args)
        path.write_text(path.read_text() + '\n{"problem": "What is 1 + 1?", "answer": "2"}')
        return found

    monkeypatch.setattr(reading, "counted_rows", counted_rows)
    with pytest.raises(UserError, match="changed while it was read"):
        load(path, pair)
    assert folders(kept) == []


def test_shards_are_kept_as_one_file(tmp_path, pair, kept, monkeypatch):
    lines = write(tmp_path / "own.jsonl").read_text().split("\n")
    shards = tmp_path / "shards"
    shards.mkdir()
    for n in range(3):
        (shards / f"own-{n}-of-3.jsonl").write_text("\n".join(lines[n * 200 : (n + 1) * 200] if n < 2 else lines[400:]))
    one, (said, *_) = load(tmp_path / "own.jsonl", pair)[0], load(shards, pair)[1:]
    again = load(shards, pair)
    assert isinstance(again[0], Stored) and list(again[0]) == list(one) and again[1] == said
    assert any("own-0-of-3.jsonl, line 8" in line for line in said)


def test_what_is_kept_is_what_was_read(tmp_path, pair, kept, monkeypatch):
    path = write(tmp_path / "own.jsonl")
    monkeypatch.setattr(stored, "LARGE", path.stat().st_size + 1)
    read, said, _ = load(path, pair)
    assert isinstance(read, list) and not kept.exists()
    monkeypatch.setattr(stored, "LARGE", path.stat().st_size)
    first, said_first, making = load(path, pair)
    assert isinstance(first, Stored) and "is large: its prompts are made once, into" in making
    monkeypatch.setattr(reading, "tokenize", None)  # from now on nothing is
    again, said_again, taking = load(path, pair)
    assert taking == f"{path}: its prompts are in {kept / folders(kept)[0]}"
    assert list(first) == list(again) == read and again[-2:] == read[-2:] and again[41] == read[41]
    assert len(read) == 597 and said == said_first == said_again
    assert (
        "4 of 601 rows" in said[-1]
        and "line 8 and 1 more: the prompt has" in said[-1]
        and "line 301: not JSON" in said[-1]
    )
    for role in ("student", "teacher"):  # who read the same here
        assert tokens_used(again, role) == {i for prompt in read for i in prompt.ids}
    (training, out), (of_read, out_read) = (hold_out(prompts, 20, "own.jsonl") for prompts in (again, read))
    assert list(training) == of_read and out == out_read and len(out) == 20 and len(of_read) < 577
    assert list(ids_digests(training)) == [prompt.ids_digest for prompt in of_read]
    assert [training[i] for i in step_indices(len(training), 8, 5, 90)] == [
        of_read[i] for i in step_indices(len(of_read), 8, 5, 90)
    ]
    twice = hold_out(training, 30, "own.jsonl")
    assert (list(twice[0]), twice[1]) == hold_out(of_read, 30, "own.jsonl")
    with pytest.raises(UserError, match=r"leaves no prompt of own.jsonl to train on: it has \d+ different"):
        hold_out(training, 500, "own.jsonl")


def test_another_file_setting_or_template_is_read_anew_and_a_moved_file_is_not(tmp_path, pair, kept):
    path = write(tmp_path / "own.jsonl", 60)
    before, _, _ = load(path, pair)
    moved = path.rename(tmp_path / "moved.jsonl")
    again, said, _ = load(moved, pair)
    assert list(again) == list(before) and len(folders(kept)) == 1 and f"{moved}, line 8" in said[-1]
    moved.write_text(moved.read_text().replace("What is 3 ", "What was 3 "))
    changed, _, _ = load(moved, pair)
    assert [b.question for a, b in zip(before, changed, strict=True) if a != b] == ["What was 3 + 1?"]
    longer, _, _ = load(moved, pair, max_prompt_tokens=900)
    assert len(longer) > len(changed)
    boxed, _, _ = load(moved, pair, prompt_suffix=" Box it.")
    assert boxed[0].messages == (("user", "What is 0 + 1? Box it."),) and boxed[0].question == "What is 0 + 1?"
    template = pair.tokenizer.chat_template
    try:
        pair.tokenizer.chat_template = "{{ 'Now: ' }}" + template
        now, _, _ = load(moved, pair)
    finally:
        pair.tokenizer.chat_template = template
    assert pair.tokenizer.decode(list(now[0].ids)).startswith("Now: ") and len(folders(kept)) == 5


@pytest.mark.parametrize("name", stored.FILES)
def test_a_damaged_folder_is_found_and_made_again(tmp_path, pair, kept, name):
    path = write(tmp_path / "own.jsonl", 60)
    before = list(load(path, pair)[0])
    file = kept / folders(kept)[0] / name
    held = bytearray(whole := file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)
    again, _, making = load(path, pair)
    assert f"what is there is damaged ({name} does not hold what manifest.json says)" in making
    assert list(again) == before and file.read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_reading_and_leaves_nothing(tmp_path, pair, kept, monkeypatch, number):
    path, calls, tokenize = write(tmp_path / "own.jsonl"), [], reading.tokenize

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return tokenize(*args)

    monkeypatch.setattr(reading, "tokenize", interrupted)
    with pytest.raises(Stopped) as stopped:
        load(path, pair)
    assert stopped.value.signal == number and len(calls) == 2 and folders(kept) == []


def test_a_file_without_a_usable_row_keeps_nothing(tmp_path, pair, kept):
    path = tmp_path / "empty.jsonl"
    path.write_text('{"q": 1}\n')
    with pytest.raises(UserError, match="no usable problem in .*empty.jsonl:\n.*line 1: no column"):
        load(path, pair)
    assert folders(kept) == []


def test_what_is_kept_is_not_held_in_memory(tmp_path, pair, kept):
    path = write(tmp_path / "own.jsonl", 2000)
    load(path, pair)
    tracemalloc.start()
    try:
        prompts = load(path, pair)[0]
        training, _ = hold_out(prompts, 20, "own.jsonl")
        held, peak = tracemalloc.get_traced_memory()
        indices = step_indices(len(training), 8, 0, 1_000_000)
        order = tracemalloc.get_traced_memory()[0] - held
        as_list = list(training)
        of_list = tracemalloc.get_traced_memory()[0] - held
    finally:
        tracemalloc.stop()
    assert len(as_list) == len(training) and len(indices) == 8
    assert of_list > 1_500_000 > 10 * held, (held, of_list)
    assert peak < 4_000_000 and order < 10 * len(training) + 4096, (peak, order)


def test_a_run_goes_on_from_what_is_kept(tmp_path, kept, monkeypatch):
    path = write(tmp_path / "own.jsonl", 60)
    config = load_config("bundled", data=str(path), hold_out=5, eval_benchmarks=None, eval_every=0)
    run = SimpleNamespace(path=tmp_path, steps_saved=[])
    monkeypatch.setattr(stored, "LARGE", 10**9)
    Inputs(run, prepare(config, print)).keep(0)
    monkeypatch.setattr(stored, "LARGE", 1)
    ready = prepare(config, print)
    Inputs(run, ready).refuse()
    assert isinstance(ready.prompts, Stored) and len(ready.prompts) == 52 and len(ready.held_out[0].prompts) <= 5
    path.write_text(path.read_text().replace("What is 3 ", "What was 3 "))
    with pytest.raises(UserError, match=r"data: own.jsonl \((.|\n)*prompts: other tokens in these 52"):
        Inputs(run, prepare(config, print)).refuse()
