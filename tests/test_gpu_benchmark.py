"""The GPU benchmark, in small shapes on this CPU: it runs from source, is right, and counts what it says it counts."""

import json
from pathlib import Path

import forked
import pytest

STEPS = ["full-0.6b-4b-b32", "full_kl-0.6b-4b-b8", "plain-0.6b-4b-b8", "lora-0.6b-4b-b8"]
RUN = Path(__file__).parent.parent / "benchmarks" / "gpu" / "run.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    measured, others = ["card", "correct"], ["profile", "head", "decode"]

    def flags(*parts):
        return [str(RUN), "--tiny", "--output", str(out), *(word for part in parts for word in ("--part", part))]

    done = forked.run(*flags(*measured), cwd=out)  # each in a process that it starts
    assert done.returncode == 0, done.stdout + done.stderr
    for part in [*STEPS, *others]:  # what these processes run
        done = forked.run(*flags(part), "--here", cwd=out)
        assert done.returncode == 0, done.stdout + done.stderr
    done = forked.run(*flags(), "--table", "--plan", cwd=out)
    return done.stdout, {part: json.loads((out / f"{part}.json").read_text()) for part in [*measured, *STEPS, *others]}


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
    for part in STEPS:
        f = facts[part]
        assert f["tokens_per_second"] * f["seconds"] == pytest.approx(4 * 16)
        assert set(f["seconds_by_phase"]) == {"rollout", "teacher", "student", "optimizer"}
        assert sum(f["seconds_by_phase"].values()) == pytest.approx(f["seconds"], rel=0.1)
        assert f["teacher"] == "tiny-teacher, 4 bits"
        assert set(f["planned_gib_by_phase"]) == set(f["seconds_by_phase"])
        assert all(0 < gib < 0.2 for gib in f["planned_gib_by_phase"].values())


def test_every_step_learns_and_says_where_it_ran(results):
    _, facts = results
    for part in STEPS:
        assert facts[part]["grad_norm"] > 1e-6
        assert facts[part]["device"] == "CPU" and facts[part]["torch"] and "commit" in facts[part]
    for part in ("lora-0.6b-4b-b8", "full-0.6b-4b-b32"):
        assert 0 < facts[part]["gap"] < 0.01  # nats, of engine and trainer in bfloat16


def test_half_of_the_lines_end_where_that_is_asked_for(results):
    """4 lines of 24 tokens; 4 of which 2 end just after the fourth; 2."""
    _, facts = results
    rows = facts["decode"]["rows"]
    assert [row["ended"] for row in rows] == [0, 2, 0]
    tokens = [row["tokens/s"] * row["ms a token"] / 1000 * 24 for row in rows]  # all lines, by one line's longest
    assert tokens[0] == pytest.approx(96) and 2 * 24 + 10 <= tokens[1] < 2 * 24 + 24 and tokens[2] == pytest.approx(48)


def test_the_profiles_count_what_ran(results):
    """4 tokens and the prompts, 2 layers of 7 projections, their LoRA's B apart: at least 4 x 2 x 7 x 2 products."""
    _, facts = results
    decoded, update = facts["profile"]["profiles"].values()
    products = sum(k["calls"] for k in decoded["top"] if k["name"] in ("aten::mm", "aten::addmm"))
    assert products >= 100
    for profile in (decoded, update):
        assert profile["us"] >= sum(k["us"] for k in profile["top"]) > 0.8 * profile["us"]


def test_the_table_has_a_line_a_part(results):
    output, facts = results
    rows = [line for line in output.splitlines() if line.startswith("| ") and "-0.6b-" in line]
    assert [row.split(" | ")[0] for row in rows] == [f"| {part}" for part in STEPS]
    assert [line for line in output.splitlines() if line.startswith(("| head:", "| decode:", "| update:"))]
    assert sum(line.startswith(("| student, ", "| teacher |")) for line in output.splitlines()) == len(
        facts["head"]["rows"]
    )


def test_the_parts_that_fit_are_run_in_their_order(tmp_path):
    """240 s hold the first four parts, 222 s; no other one is as short as the 18 that are left."""
    done = forked.run(str(RUN), "--list", "--seconds", "240", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    *parts, total = done.stdout.splitlines()
    assert [line.split()[0] for line in parts] == ["card", "correct", "lora-0.6b-4b-b32", "lora-0.6b-4b-b32-kept"]
    assert total == "4 parts, 222 s"
    assert sum(int(line.split()[1]) for line in parts) == 222


def test_qwen_shapes_have_qwens_numbers_of_weights(tmp_path):
    """0.44, 1.41, 3.63 and 6.95 billion weights in projections, by hand from the published configs."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import steps; print([steps.body_weights(n) for n in ('0.6b', '1.7b', '4b', '8b')])"
    done = forked.run("-c", code, str(RUN.parent), cwd=tmp_path)
    assert json.loads(done.stdout) == [440_401_920, 1_409_286_144, 3_633_315_840, 6_945_767_424]
