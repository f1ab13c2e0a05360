"""A run whose output nobody reads any more ends as at a signal: saved, and it can go on."""

import json
import signal

import forked
import pytest
from conftest import quick_flags, run_train
from safetensors.torch import load_file

from poweropd_lite.run.checkpoint import checkpoints

FLAGS = ["--config", "bundled", *quick_flags(steps=5, max_new_tokens=40, batch_size=4, eval_every=0), "--output", "run"]

# Runs the train command, writing into a pipe whose reader goes when the rollouts of the third step are sampled; a Ctrl-C may come with it.
UNREAD = """
import os, sys
from poweropd_lite.cli import run_command
from poweropd_lite.run.session import Prepared
from poweropd_lite.train import __main__ as command
reader, writer = os.pipe()
os.dup2(writer, 1)
number, left, real = int(sys.argv[1]), 2, Prepared.sample
def sampled(*args):
    global left
    if left == 0:
        os.close(reader)
        if number > 0:
            os.kill(os.getpid(), number)
        if number < 0:
            print("a line of an engine", flush=True)
    left -= 1
    return real(*args)
Prepared.sample = sampled
run_command(lambda: command.main(sys.argv[2:]))
"""


def what_was_learnt(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line], load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(("number", "code", "steps"), [(0, 141, 3), (signal.SIGINT, 130, 3), (-1, 141, 2)])
def test_a_reader_that_goes_ends_the_run_saved(number, code, steps, tmp_path):
    """As `| head` does, and a Ctrl-C that ends `| tee`, too, or a line that is printed in the middle of a step, which is not
    taken then; resumed, it ends where an undisturbed run does.
    """
    done = forked.run("-c", UNREAD, str(int(number)), *FLAGS, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, "")
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step_{steps:06}"
    assert run_train("--resume", "run", cwd=tmp_path).returncode == 0
    whole = run_train(*FLAGS[:-1], "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    (losses, weights), (theirs, others) = (what_was_learnt(tmp_path / name) for name in ("run", "whole"))
    assert len(losses) == 5 and losses == theirs
    assert all((weight == others[name]).all() for name, weight in weights.items())
