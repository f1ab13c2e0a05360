"""benchmarks/scaling.py and benchmarks/rented.py: by hand-computed numbers, and the disk against a real run's folder."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import quick_flags, run_train

from poweropd_lite.base.config import load_config
from poweropd_lite.models.shape import read_shape

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize(("cards", "reduce"), [(8, 0.25), (64, 3e9 / (50e9 * 0.6))])
def test_a_step_sums_over_the_network_beyond_one_machine(cards, reduce):
    """3 GB at 60% of 50 GB/s are 0.1 s; within a machine it is the plan's own 0.25 s. 64 tokens of 8 prompts in so long."""
    from scaling import step

    found = {
        "gpus": {"cards": cards, "sent_bytes": 3_000_000_000},
        "seconds": {"step": {"rollout": 3.0, "score": 1.0, "all-reduce": 0.25}, "assumed": {"bandwidth_share": 0.6}},
        "needed_bytes": 2 * 2**30,
    }
    s = step(found, 8, 50e9)
    assert s.phases["all-reduce"] == pytest.approx(reduce) and s.seconds == pytest.approx(4 + reduce)
    assert s.tokens(64) == pytest.approx(512 / (4 + reduce)) and (s.cards, s.needed) == (cards, 2.0)
    assert found["seconds"]["step"]["all-reduce"] == 0.25  # the report is left as it was


def test_the_pool_that_keeps_up_and_the_one_that_is_waited_for():
    """A score of 1 s, 3 s for the rest, eight cards: a pool of 2, since 6 x 1 / 2 = 3. Waited for, a pool of 1, 2 and 3 leaves
    7, 6 and 5 cards steps of 10, 6 and 4.67 s: 0.7, 1 and 1.07 a second, 4 cards of 4 s 1 again.
    """
    from scaling import pool, waiting

    assert pool(8, 1.0, 3.0) == 2 and pool(64, 1.0, 3.0) == 16
    assert pool(8, 0.6, 3.4) == 2  # one is too few: 7 x 0.6 = 4.2 > 3.4
    assert all(pool(n, 4.0, 3.0) == next(p for p in range(1, n) if (n - p) * 4 / p <= 3) for n in (8, 64))
    few, seconds = waiting(8, 1.0, 3.0)
    assert few == 3 and seconds == pytest.approx(3 + 5 / 3)


def test_disk_by_hand():
    """Qwen3-0.6B has 596,049,920 weights, its head of 151,936 x 1,024 once; three checkpoints of 12 bytes a weight are the most."""
    from rented import disk, files

    student = read_shape("Qwen/Qwen3-0.6B-Base", "student")
    assert files(student) == 2 * (596_049_920 + 151_936 * 1024)
    lora = disk(load_config("qwen3-0.6b-4b"), student, student, 20_185_088)
    assert (lora.checkpoint, lora.run) == (242_221_056, 40 * 20_185_088)  # 3 x 12 and the adapter's 4
    whole = disk(load_config("qwen3-0.6b-4b-full"), student, student, 596_049_920)
    assert whole.run == 40 * 596_049_920
    untied = SimpleNamespace(head=(10, 4), elements=100, config=SimpleNamespace(tie_word_embeddings=False))
    assert files(untied) == 200


def test_a_run_s_folder_is_as_large_as_was_computed(tmp_path):
    """Two checkpoints and the adapter of a real run: the computed bytes and, each, what names, states and numbers beside take."""
    from rented import disk

    done = run_train("--config", "bundled", *quick_flags(steps=4), "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shape = read_shape("bundled", "student")
    found = disk(load_config("bundled"), shape, shape, 116_736)
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(saved) == 2  # keep_checkpoints: the third is there while it is written
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in saved]
    assert all(found.checkpoint < size < found.checkpoint + 80_000 for size in sizes)
    weights = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert math.isclose(found.run, 3 * found.checkpoint + weights, rel_tol=0.01)
