"""The GPU benchmark, in small shapes on this CPU: it runs from source, is right, and counts what it says it counts."""

import json
from pathlib import Path

import forked
import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "gpu" / "run.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    measured, steps = (
        ["card", "correct"],
        ["lora-0.6b-4b-b8", "full_kl-0.6b-4b-b8", "plain-0.6b-4b-b8", "full-0.6b-4b-b8"],
    )

    def flags(*parts):
        return [str(RUN), "--tiny", "--output", str(out), *(word for part in parts for word in ("--part", part))]

    done = forked.run(*flags(*measured), cwd=out)  # each in a process that it starts
    assert done.returncode == 0, done.stdout + done.stderr
    for part in steps:  # what these processes run
        done = forked.run(*flags(part), "--here", cwd=out)
        assert done.returncode == 0, done.stdout + done.stderr
    done = forked.run(*flags(), "--table", cwd=out)
    return done.stdout, {part: json.loads((out / f"{part}.json").read_text()) for part in [*measured, *steps]}


def test_bfloat16_is_right_against_float32(results):
    _, facts = results
    errors = facts["correct"]["errors"]
    assert facts["correct"]["faults"] == []
    for name in ("full", "sampled", "full_kl"):
        assert errors[f"{name}: largest error, nats"] < 1e-4
        assert errors[f"{name}: gradient, relative error"] < 0.01
    assert 0 < errors["NF4 product against its dequantised weights in float32: worst relative error"] < 0.01
    assert errors["loop, LoRA: mean gap to a plain forward, nats"] < 0.01
    assert errors["loop, LoRA: tokens"] == 8 * 24


def test_every_step_samples_whole_completions_and_the_phases_add_up(results):
    _, facts = results
    for part in ("lora-0.6b-4b-b8", "full_kl-0.6b-4b-b8", "plain-0.6b-4b-b8", "full-0.6b-4b-b8"):
        f = facts[part]
        assert f["tokens_per_second"] * f["seconds"] == pytest.approx(4 * 16)
        assert set(f["seconds_by_phase"]) == {"rollout", "teacher", "student", "optimizer"}
        assert sum(f["seconds_by_phase"].values()) == pytest.approx(f["seconds"], rel=0.1)
        assert f["teacher"] == "tiny-teacher, 4 bits"
        assert set(f["planned_gib_by_phase"]) == set(f["seconds_by_phase"])
        assert all(0 < gib < 0.2 for gib in f["planned_gib_by_phase"].values())


def test_the_table_has_a_line_a_part(results):
    output, _ = results
    rows = [line for line in output.splitlines() if line.startswith("| ") and "-0.6b-" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| lora-0.6b-4b-b8", "| full-0.6b-4b-b8", "| full_kl-0.6b-4b-b8", "| plain-0.6b-4b-b8"]  # fmt: skip


def test_qwen_shapes_have_qwens_numbers_of_weights(tmp_path):
    """0.44, 1.41, 3.63 and 6.95 billion weights in projections, by hand from the published configs."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import steps; print([steps.body_weights(n) for n in ('0.6b', '1.7b', '4b', '8b')])"
    done = forked.run("-c", code, str(RUN.parent), cwd=tmp_path)
    assert json.loads(done.stdout) == [440_401_920, 1_409_286_144, 3_633_315_840, 6_945_767_424]
