"""Several processes that train one student, over gloo: against one process, killed, stopped and resumed."""

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file

HERE = Path(__file__).parent
SMALL = [
    "--batch-size",
    "5",
    "--max-new-tokens",
    "40",
    "--data",
    DATA,
    "--save-every",
    "1",
    "--eval-benchmarks",
    "none",
]


def run_ranks(count, *args, cwd):
    """Runs `python *args` in `count` processes that know of each other; returns what each printed and ended with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def run(rank):
        env = os.environ | known | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        return forked.server().run(*args, cwd=cwd, env=env)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def trained(run, step):
    return load_file(run / "checkpoints" / f"step_{step:06}" / "trained.safetensors")


def lines(run):
    """The metrics of each step, without what a clock or a process's memory decides."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in found]


@pytest.mark.parametrize("count", [2, 3])
def test_the_gradient_is_that_of_one_process_for_every_reward(tmp_path, count):
    first, *others = run_ranks(count, str(HERE / "several.py"), cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert all(done.returncode == 0 and done.stdout == "" for done in others), others
    apart = json.loads(first.stdout.splitlines()[-1])
    assert len(apart) > 25 and {name: far for name, far in apart.items() if not far < 1e-10} == {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with two/, three steps by two processes, and one/, by one."""
    folder = tmp_path_factory.mktemp("ranks")
    flags = ["-m", "poweropd_lite.train", "--config", "bundled", *SMALL, "--steps", "3"]
    for done in run_ranks(2, *flags, "--tracker", "tensorboard", "--output", "two", cwd=folder):
        assert done.returncode == 0, done.stdout + done.stderr
    alone = forked.run(*flags, "--output", "one", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    return folder


def test_two_processes_train_as_one_does(whole):
    """They draw the same rollouts, so all that is said of a step is the same but for rounding."""
    one, two = lines(whole / "one"), lines(whole / "two")
    for alone, together in zip(one, two, strict=True):
        assert together["tokens/loss"] == alone["tokens/loss"]
        for name in ("loss", "optim/grad_norm", "reward/mean", "kl/train", "parity/gap"):
            assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name
    assert len({file.name.rsplit(".", 2)[1] for file in (whole / "two").rglob("events.out.*")}) == 1  # of one process
    ours, theirs = trained(whole / "two", 3), trained(whole / "one", 3)
    off = sum((ours[k] - theirs[k]).square().sum() for k in ours) ** 0.5
    assert off / sum(theirs[k].square().sum() for k in theirs) ** 0.5 < 1e-4


def test_resumed_on_as_many_it_is_the_same_bit_for_bit_and_on_more_it_reads_the_same_data(whole, tmp_path):
    short = ["-m", "poweropd_lite.train", "--config", "bundled", *SMALL, "--steps", "2", "--output", "run"]
    assert [done.returncode for done in run_ranks(2, *short, cwd=tmp_path)] == [0, 0]
    again = ["-m", "poweropd_lite.train", "--resume", "run"]
    assert [done.returncode for done in run_ranks(2, *again, "--steps", "3", cwd=tmp_path)] == [0, 0]
    ours, theirs = trained(tmp_path / "run", 3), trained(whole / "two", 3)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert lines(tmp_path / "run") == lines(whole / "two")
    third = run_ranks(3, *again, "--steps", "4", cwd=tmp_path)
    assert [done.returncode for done in third] == [0, 0, 0] and "processes: 3, where it had 2 so far" in third[0].stdout
    shutil.copytree(whole / "one", tmp_path / "alone")
    more = forked.run("-m", "poweropd_lite.train", "--resume", "alone", "--steps", "4", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert lines(tmp_path / "run")[3]["tokens/loss"] == lines(tmp_path / "alone")[3]["tokens/loss"]
    assert sorted(os.listdir(tmp_path)) == ["alone", "run"]  # nothing of the others' books


def test_what_several_cannot_do_is_refused(tmp_path):
    flags = ["-m", "poweropd_lite.train", "--config", "bundled", "--output", "run"]
    for more, said in (
        (["--batch-size", "1"], "a step of 1 prompts can't be shared by 2 processes; type --batch-size"),
        (["--engine", "vllm"], "engine vllm has not been tried with several processes; type --engine loop"),
    ):
        done = run_ranks(2, *flags, *more, cwd=tmp_path)
        assert [d.returncode for d in done] == [2, 2] and said in done[0].stderr, done
        assert "Traceback" not in done[0].stderr
    assert not (tmp_path / "run").exists()


def test_a_process_that_dies_or_a_signal_ends_them_all_and_the_run_goes_on(tmp_path):
    """Started as users do: `accelerate launch` asks for no card."""
    together = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *together]
    command = [*launch, "poweropd_lite.train", "--config", "bundled", *SMALL, "--steps", "40", "--output", "run"]
    again = [*launch, "poweropd_lite.train", "--resume", "run"]

    told = os.environ | {"PYTHONUNBUFFERED": "1"}

    def begun(command, words):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=told
        )
        for line in process.stdout:
            if words in line:
                return process
        raise AssertionError("it ended before its time")

    process = begun(command, "step 2/40")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "finished" not in said
    process = begun(again, "resuming run at step")
    process.send_signal(signal.SIGTERM)  # to the launcher, which hands it on
    said = process.communicate(timeout=60)[0]
    taken = len(lines(tmp_path / "run"))
    assert "stopping after this step" in said and f"stopped at step {taken} of 40" in said
    assert (tmp_path / "run" / "checkpoints" / f"step_{taken:06}").is_dir()
