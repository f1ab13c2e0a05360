"""The reproduce command as it is run: killed and restarted to the same bytes, failures kept and said, no loss by a stop."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

from poweropd_lite.reproduce import child
from poweropd_lite.reproduce.grid import DONE, FAILED, WAITING
from poweropd_lite.reproduce.settings import split_settings
from poweropd_lite.reproduce.settle import settle

TINY = Path(__file__).parents[2] / "poweropd_lite/tiny"
COMMAND = ["-m", "poweropd_lite.reproduce"]
ONE_RUN = {
    "pairs": "bundled",
    "rewards": "power",
    "alphas": "10",
    "seeds": "0",
    "problems": 4,
    "n": 2,
    "steps": 2,
    "batch-size": 4,
}
TINY_GRID = [f"--{name}={value}" for name, value in ONE_RUN.items()]
SMOKE = ["--preset", "smoke", "--batch-size", "8"]


def run(*flags: str, cwd: Path) -> subprocess.CompletedProcess:
    return forked.run(*COMMAND, *flags, cwd=cwd)


def states(out: Path) -> dict[str, str]:
    return {name: r["state"] for name, r in json.loads((out / "queue.json").read_text())["tasks"].items()}


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


# Killed and restarted


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """A folder in which the smoke preset ran undisturbed, of eight rollouts a step."""
    folder = tmp_path_factory.mktemp("smoke")
    done = run(*SMOKE, "--output", "whole", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def in_training(out: Path) -> bool:
    """Five steps of the first run are taken: past its first checkpoint."""
    metrics = out / "runs/bundled-power10-plain-seed0/metrics.jsonl"
    return metrics.exists() and metrics.read_text().count("\n") >= 5


def in_evaluation(out: Path) -> bool:
    """A run is being scored."""
    runs = json.loads((out / "queue.json").read_text())["tasks"].values() if (out / "queue.json").exists() else []
    return any(r["state"] == "running" and r["stage"] == "evaluate" and r["role"] == "run" for r in runs)


def between(out: Path) -> bool:
    """A run is done, and another is not."""
    found = states(out) if (out / "queue.json").exists() else {}
    return any(s == DONE and "seed" in name for name, s in found.items()) and DONE not in {
        found["bundled-log_ratio-plain-seed0"]
    }


def test_smoke_killed_three_times_ends_with_the_same_tables(smoke):
    out = smoke / "killed"
    for moment in (in_training, in_evaluation, between):
        # One at a time, so that there is a moment between two runs.
        with open(smoke / "killed.txt", "a") as said:
            flags = [*SMOKE, "--output", "killed", "--jobs", "1"]
            queue = forked.start(*COMMAND, *flags, cwd=smoke, file=said)
            limit = time.monotonic() + 200
            while not moment(out):
                assert queue.poll() is None, f"ended before {moment.__name__}: {(smoke / 'killed.txt').read_text()}"
                assert time.monotonic() < limit, moment.__name__
                time.sleep(0.02)
            queue.send_signal(signal.SIGKILL)
            queue.wait()
        assert WAITING in states(out).values() or "running" in states(out).values()
    done = run(*SMOKE, "--output", "killed", cwd=smoke)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(states(out).values()) == {DONE} and len(states(out)) == 4
    for name in ("tables.md", "tables.csv"):
        assert (out / name).read_bytes() == (smoke / "whole" / name).read_bytes(), name
    # The kill in training was resumed, not begun again: a run that was killed at five steps or later had a checkpoint of four.
    log = (out / "logs/bundled-power10-plain-seed0.log").read_text()
    taken = [int(found) for found in re.findall(r"resuming .* at step (\d+) of 10", log)]
    assert taken and min(taken) >= 4
    metrics = (out / "runs/bundled-power10-plain-seed0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, 11))


def test_the_smoke_tables_hold_what_its_runs_found(smoke):
    """Every measured cell against the evaluation's own samples, counted here."""
    whole = smoke / "whole"
    table = {(r["row"], r["measure"]): r for r in rows_of(whole / "tables.csv")}
    folders = {
        "power 10": "runs/bundled-power10-plain-seed0/eval/step_000010",
        "log_ratio": "runs/bundled-log_ratio-plain-seed0/eval/step_000010",
        "base": "evaluations/bundled-student",
        "teacher": "evaluations/bundled-teacher",
    }
    for row, folder in folders.items():
        samples = [json.loads(line) for line in (whole / folder / "bundled.jsonl").read_text().splitlines()]
        assert len(samples) == 64
        right = {i: [s["correct"] for s in samples if s["problem"] == i] for i in range(32)}
        found = {measure: float(table[row, measure]["mean"]) for measure in ("avg", "pass", "length", "stop")}
        assert found["avg"] == pytest.approx(100 * sum(map(sum, right.values())) / 64)
        assert found["pass"] == pytest.approx(100 * sum(map(any, right.values())) / 32)
        assert found["length"] == pytest.approx(sum(s["tokens"] for s in samples) / 64)
        assert found["stop"] == pytest.approx(100 * sum(not s["truncated"] for s in samples) / 64)
        assert table[row, "avg"]["n"] == "1" and table[row, "avg"]["low"] == "" and table[row, "avg"]["paper"] == ""
    share = 100 * float(table["power 10", "avg"]["mean"]) / float(table["teacher", "avg"]["mean"])
    assert float(table["power 10", "teacher_share"]["mean"]) == pytest.approx(share)
    norms = [
        json.loads(x)["optim/grad_norm"]
        for x in (whole / "runs/bundled-power10-plain-seed0/metrics.jsonl").read_text().splitlines()
    ]
    assert float(table["power 10", "largest_grad_norm"]["mean"]) == pytest.approx(max(norms))
    settings = json.loads((whole / folders["teacher"] / "settings.json").read_text())["settings"]
    assert settings["bits"] == 4  # as it scores
    text, page = (whole / "tables.md").read_text(), (whole / "tables.html").read_text()
    assert "A cell of one seed has no interval" in text and "±" not in text
    assert "<script" not in page and "http" not in page and page.count("<table>") == 3
    assert "s a step" not in text and "seconds" not in text
    cost = {r["reward"]: r for r in rows_of(whole / "cost.csv")}
    times = sorted(
        json.loads(x)["time/step"]
        for x in (whole / "runs/bundled-power10-plain-seed0/metrics.jsonl").read_text().splitlines()
    )
    assert float(cost["power"]["seconds_median"]) == pytest.approx((times[4] + times[5]) / 2, rel=1e-4)
    assert cost["power"]["steps"] == "10" and cost["power"]["paper_seconds"] == ""
    said = (smoke / "said.txt").read_text()
    assert "the first that is done will tell" in said and "4 of 4 done" in said


def test_the_same_command_again_runs_nothing_and_more_of_the_grid_joins(smoke):
    out = smoke / "whole"
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/summary.json")}
    again = run(*SMOKE, "--output", "whole", cwd=smoke)
    assert again.returncode == 0 and "training" not in again.stdout
    assert (
        again.stdout.startswith("whole goes on with the settings that it was begun with: ")
        and "--steps 10" in again.stdout
    )
    assert {file: file.stat().st_mtime_ns for file in out.glob("runs/*/summary.json")} == before
    for flags, words in (
        (["--steps", "20"], "steps 10 there, 20 now"),
        (["--n", "4"], "n 2 there, 4 now"),
        (["--lr", "1e-3"], "lr 0.002 there, 0.001 now"),
    ):
        refused = run(*SMOKE, "--output", "whole", *flags, cwd=smoke)
        assert refused.returncode == 2 and words in refused.stderr and "--output with a new folder" in refused.stderr
    # A third reward joins; nothing else has to be typed, and what is done is not done again.
    shown = run("--output", "whole", "--rewards", "tanh", "--dry-run", cwd=smoke)
    assert shown.returncode == 0 and "3 runs to train and score, 2 models to score, in whole; 4 done" in shown.stdout
    assert len(states(out)) == 4  # a dry run writes nothing


def test_it_ends_with_the_page_of_its_grid(smoke):
    """Its numbers are the table's; it is drawn anew where it is gone, not where nothing is new; else the tables stand."""
    out, said = smoke / "paged", (smoke / "said.txt").read_text()
    assert said.endswith("files   whole: tables.md  tables.csv  cost.md  cost.csv  tables.html  report/index.html\n")
    shutil.copytree(smoke / "whole", out)
    numbers = json.loads((out / "report/report.json").read_text())
    table = {(r["row"], r["measure"]): float(r["mean"]) for r in rows_of(out / "tables.csv") if r["mean"]}
    ends = {label: 100 * seeds["0"] for label, seeds in numbers["end"]["values"].items()}
    assert ends == pytest.approx({label: table[label, "avg"] for label in ("power 10", "log_ratio")})
    assert 100 * numbers["teacher"]["accuracy"] == pytest.approx(table["teacher", "avg"])
    assert numbers["title"] == "power 10 and log_ratio on bundled-student <- bundled-teacher, 1 seed each"
    made = (out / "report/index.html").stat().st_mtime_ns
    again = run("--output", "paged", "--tables-only", cwd=smoke)
    assert again.returncode == 0 and "report/index.html" in again.stdout
    assert (out / "report/index.html").stat().st_mtime_ns == made
    shutil.rmtree(out / "report")
    (out / "report").write_text("in its place")
    (out / "tables.md").unlink()
    refused = run("--output", "paged", "--tables-only", cwd=smoke)
    assert refused.returncode == 0 and (out / "tables.md").exists() and "tables.html\n" in refused.stdout
    assert f"paged/report was not drawn: {smoke}/paged/report is a file; type --output" in refused.stdout


def test_of_several_pairs_each_has_a_page(smoke):
    """The smoke preset's queue as if log_ratio had been run on another pair, in the place of an earlier page of one."""
    shutil.copytree(smoke / "whole", smoke / "two")
    code = """from pathlib import Path
from poweropd_lite.reproduce.pages import write_pages
from poweropd_lite.reproduce.state import read_queue
queue = read_queue(Path("two"))
queue.pairs["another"] = queue.pairs["bundled"]
queue.tasks["bundled-log_ratio-plain-seed0"].pairs = ["another"]
print(write_pages(queue, print))"""
    done = forked.run("-c", code, cwd=smoke)
    bundled, another, pages = done.stdout.splitlines()
    assert pages == "['report/bundled/index.html', 'report/another/index.html']", done.stdout + done.stderr
    assert bundled.startswith("bundled: bundled-power10-plain-seed0 (power 10), 10 of 10 steps: Avg@2 ")
    assert bundled.endswith("% of the teacher's.") and another.endswith("% on bundled at step 10 by evaluate.")
    assert sorted(path.name for path in (smoke / "two/report").iterdir()) == ["another", "bundled"]
    for pair, label in (("bundled", "power10"), ("another", "log_ratio")):
        numbers = json.loads((smoke / "two/report" / pair / "report.json").read_text())
        assert [run["name"] for run in numbers["runs"]] == [f"bundled-{label}-plain-seed0"]


# Failures and stops


def test_a_run_that_fails_is_kept_and_said_and_the_queue_goes_on(tmp_path):
    """A learning rate of 1e30 makes every step non-finite for power; the folder of log_ratio holds somebody else's run."""
    other = tmp_path / "q" / "runs" / "bundled-log_ratio-plain-seed0"
    flags = [*TINY_GRID, "--rewards", "power,log_ratio", "--output", "q"]
    assert run(*flags, "--dry-run", cwd=tmp_path).returncode == 0 and not (tmp_path / "q").exists()
    names = {name.replace("-", "_"): value for name, value in ONE_RUN.items()}
    asked, training, given = split_settings(names | {"rewards": "power,log_ratio"})
    out = tmp_path / "q"
    out.mkdir()
    settle(asked, training, given, None, out).save()
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("student: bundled\nteacher: bundled\ndata: bundled\nseed: 7\ntoken_budget: 1024\nmax_prompt_tokens: 128\nmax_new_tokens: 112\n")  # fmt: skip
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    found = states(out)
    assert found.pop("bundled-log_ratio-plain-seed0") == FAILED and set(found.values()) == {DONE}
    assert "bundled-log_ratio-plain-seed0: failed, and the queue goes on" in done.stdout
    assert (
        "holds another run" in done.stdout and "seed 7 there, 0 here" in done.stdout and "--retry-failed" in done.stdout
    )
    table = (out / "tables.md").read_text()
    assert "| `log_ratio` | failed | - |" in table and "Failed: bundled-log_ratio-plain-seed0: " in table
    assert (other / "config.yaml").read_text().startswith("student: bundled")  # nothing was written over it
    # Without --retry-failed it stays failed, and nothing is run; moved away and tried again, it is done.
    assert run("--output", "q", cwd=tmp_path).returncode == 1
    other.rename(tmp_path / "away")
    done = run("--output", "q", "--retry-failed", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(states(out).values()) == {DONE} and "failed" not in (out / "tables.md").read_text().lower()


def test_a_training_that_gives_up_says_why(tmp_path):
    """At a learning rate of 1e30 every step is dropped, and train gives up."""
    flags = [*TINY_GRID, "--steps", "14", "--lr", "1e30", "--output", "q"]
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    message = json.loads((tmp_path / "q/queue.json").read_text())["tasks"]["bundled-power10-plain-seed0"]["message"]
    assert message.startswith("train ended with code 1: 5 of the last 5 steps were dropped"), message
    assert states(tmp_path / "q")["bundled-teacher"] == DONE
    assert (
        message in done.stdout
        and f"Failed: bundled-power10-plain-seed0: {message}" in (tmp_path / "q/tables.md").read_text()
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_without_loss(tmp_path, number):
    flags = [*TINY_GRID, "--steps", "400", "--batch-size", "8", "--output", "q"]
    out = tmp_path / "q"
    with open(tmp_path / "said.txt", "w") as said:
        queue = forked.start(*COMMAND, *flags, cwd=tmp_path, file=said)
        metrics = out / "runs/bundled-power10-plain-seed0/metrics.jsonl"
        limit = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert queue.poll() is None and time.monotonic() < limit
            time.sleep(0.05)
        queue.send_signal(number)
        assert queue.wait(60) == 128 + number
    assert states(out)["bundled-power10-plain-seed0"] == WAITING
    said = (tmp_path / "said.txt").read_text()
    assert said.count("stopping:") == 1 and f"python -m poweropd_lite.reproduce --output {out.name} goes on" in said
    summary = json.loads(
        (metrics.parent / "summary.json").read_text()
    )  # the child got one signal, saved and ended by itself
    assert summary["finished"] is False and 2 <= summary["steps"] < 400
    saved = sorted((metrics.parent / "checkpoints").iterdir())
    assert saved[-1].name == f"step_{summary['steps']:06}"
    assert run("--tables-only", "--output", "q", cwd=tmp_path).returncode == 0
    assert "not run yet" in (out / "tables.md").read_text()


def test_a_second_signal_ends_it_at_once(tmp_path):
    """The run that is trained is held still, so that it can't end by itself; 1,000 steps of it would take minutes."""
    out, metrics = tmp_path / "q", tmp_path / "q/runs/bundled-power10-plain-seed0/metrics.jsonl"
    flags = [*TINY_GRID, "--steps=1000", "--output=q"]
    impatient = "import sys; from poweropd_lite.reproduce import __main__, work; from poweropd_lite.cli import run_command; work.PATIENCE = 0.5; run_command(lambda: __main__.main(sys.argv[1:]))"
    queue = forked.start("-c", impatient, *flags, cwd=tmp_path)
    limit = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()):
        assert queue.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    children = Path(f"/proc/{queue.pid}/task/{queue.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGSTOP)
    queue.send_signal(signal.SIGINT)
    while "stopping" not in queue.stdout.readline():
        assert queue.poll() is None and time.monotonic() < limit
    queue.send_signal(signal.SIGINT)
    try:
        assert queue.wait(60) == 130
    finally:
        queue.kill()
    assert not Path(f"/proc/{children[0]}").exists()
    done = run("--tables-only", "--output", "q", cwd=tmp_path)
    assert done.returncode == 0 and "3 not run to the end" in done.stdout and not metrics.with_name("eval").exists()
    assert set(states(out).values()) <= {"running", WAITING}


def test_a_signal_while_it_plans_ends_the_plans_too(tmp_path):
    queue = forked.start(*COMMAND, *TINY_GRID, "--rewards=power,full_kl", "--output", "q", cwd=tmp_path)
    assert queue.stdout.readline().startswith("planning ")
    children, limit = Path(f"/proc/{queue.pid}/task"), time.monotonic() + 60
    while not (plans := [c for thread in children.iterdir() for c in (thread / "children").read_text().split()]):
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.kill(int(plans[0]), signal.SIGSTOP)  # it would never end by itself
    queue.send_signal(signal.SIGTERM)
    try:
        assert queue.wait(60) == 128 + signal.SIGTERM
    finally:
        queue.kill()
    assert "stopping: nothing was begun" in queue.stdout.read() and not (tmp_path / "q").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in plans)


def test_help_imports_no_torch_and_neither_does_a_queue(smoke):
    """What needs it runs in processes of their own; and the package is cheap to import."""
    code = """import sys
import poweropd_lite.reproduce
assert 'pydantic' not in sys.modules
from poweropd_lite.reproduce.__main__ import main
try: main(['--help'])
except SystemExit: pass
assert 'torch' not in sys.modules
assert main(['--output=whole', '--rewards=log_ratio,power', '--dry-run']) == 0
assert 'torch' not in sys.modules"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=smoke, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert (
        "--tables-only" in shown.stdout
        and "2 runs to train and score, 2 models to score, in whole; 4 done" in shown.stdout
    )


def test_a_pair_that_can_not_be_loaded_is_refused_before_anything_runs(tmp_path):
    student = tmp_path / "student"
    shutil.copytree(TINY / "student", student)
    settings = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(settings | {"hidden_act": "nonsense"}))
    for name in ("student", "nowhere"):
        (tmp_path / f"{name}.yaml").write_text(f"student: {tmp_path / name}\nteacher: bundled\ndata: bundled\n")
    flags = ["--rewards=tanh", "--seeds=0", "--dry-run", "--output=q"]
    odd = run("--pairs=student.yaml", *flags, cwd=tmp_path)
    assert odd.returncode == 2 and f"by the config of '{student}': KeyError: 'nonsense'" in odd.stderr
    refused = run("--pairs=nowhere.yaml", *flags, cwd=tmp_path)
    assert refused.returncode == 2 and f"nowhere: no model config for the student at '{tmp_path}" in refused.stderr


def test_a_command_leaves_its_error_as_json(tmp_path):
    failure = tmp_path / "failure.json"
    process = child.start(["poweropd_lite.train", "--config=nowhere.yaml"], failure, stderr=subprocess.PIPE, text=True)
    said = process.communicate()[1]
    assert process.returncode == 2 and said.startswith("error: no config file at nowhere.yaml; ")
    assert json.loads(failure.read_text()) == {"kind": "UserError", "message": said.removeprefix("error: ").strip()}


def test_two_queues_do_not_share_a_folder(tmp_path):
    import fcntl

    (tmp_path / "q").mkdir()
    with open(tmp_path / "q/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = run(*TINY_GRID, "--output", "q", cwd=tmp_path)
    assert refused.returncode == 2 and "another process is working on the queue in q" in refused.stderr
