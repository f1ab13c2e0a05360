"""Running out of memory, for real: the process's address space is limited and torch's own allocator refuses."""

import json

import forked
import pytest
import torch
from conftest import DATA

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import halving

# Runs the train command; before the first call of a phase (learn, sample) the process may grow by so many MiB.
LIMITED = """
import json, resource, sys
from poweropd_lite.run.session import Prepared
from poweropd_lite.train import __main__ as command, loop
phase, room = sys.argv[1], int(sys.argv[2])
owner = {"learn": loop, "sample": Prepared}[phase]
real = getattr(owner, phase)
def limited(*args):
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + room * 2**20,) * 2)
    done = real(*args)
    if "--only-sample" in sys.argv:
        lengths, logprobs = [len(r.completion_ids) for r in done], [x for r in done for x in r.logprobs]
        print(json.dumps({"length": sum(lengths) / len(lengths), "logprob": sum(logprobs) / len(logprobs)}))
        sys.exit()
    return done
setattr(owner, phase, limited)
from poweropd_lite.cli import run_command
run_command(lambda: command.main([word for word in sys.argv[3:] if word != "--only-sample"]))
"""


def limited(room: int, cwd, *flags, phase="learn"):
    unscored = ["--config", "bundled", "--data", DATA, "--eval-benchmarks", "none", "--eval-every", "0"]
    flags = [*unscored, "--steps", "2", "--output", "run", *flags]
    return forked.run("-c", LIMITED, phase, str(room), *flags, cwd=cwd)


def steps_of(path):
    return [d for d in map(json.loads, path.read_text().splitlines()) if "loss" in d]


def test_a_micro_batch_that_does_not_fit_is_halved_and_the_step_repeated(tmp_path):
    done = limited(200, tmp_path, "--batch-size", "48", "--token-budget", "32768")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "out of memory: the step is repeated with micro-batches of 16,384 tokens" in done.stdout
    steps = steps_of(tmp_path / "run" / "metrics.jsonl")
    assert [d["step"] for d in steps] == [1, 2]
    assert steps[0]["optim/out_of_memory"] >= 1 and steps[0]["optim/token_budget"] <= 16_384
    assert steps[0]["tokens/loss"] > 1500  # the whole step, not what fitted
    halved = json.loads((tmp_path / "run" / "summary.json").read_text())["out_of_memory"]
    assert halved == steps[-1]["optim/out_of_memory"] and f"memory ran out {halved}x" in done.stdout
    # The same run with enough memory: the same gradients, up to rounding.
    plain = tmp_path / "plain"
    plain.mkdir()
    done = limited(100_000, plain, "--batch-size", "48", "--token-budget", "32768", "--steps", "1")
    assert done.returncode == 0 and "out of memory" not in done.stdout
    whole = steps_of(plain / "run" / "metrics.jsonl")
    for name in ("loss", "optim/grad_norm", "tokens/loss"):
        assert steps[0][name] == pytest.approx(whole[0][name], rel=1e-3)


def test_a_batch_of_rollouts_that_does_not_fit_is_decoded_in_halves(tmp_path):
    """256 completions of up to 112 tokens: about 65 MiB of keys and values alone. The same ids come in smaller batches."""
    flags = ["--batch-size", "256", "--token-budget", "4096", "--steps", "1"]
    done = limited(75, tmp_path, *flags, phase="sample")
    assert "out of memory with 256 completions at once: from now on 128 at a time" in done.stdout, done.stderr[-2000:]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    plain = limited(100_000, tmp_path, *flags, "--output", "plain", "--only-sample", phase="sample")
    (ours,), theirs = steps_of(tmp_path / "run" / "metrics.jsonl"), json.loads(plain.stdout.splitlines()[-1])
    assert ours["rollout/length"] == theirs["length"]
    assert ours["rollout/logprob"] == pytest.approx(theirs["logprob"], rel=1e-5)


def test_the_budget_is_halved_down_to_one_rollout():
    tried, said = [], []

    def work(budget):
        tried.append(budget)
        if budget > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert halving(work, 1000, 90, torch.device("cpu"), said.append) == ("done", 90, 4)
    assert tried == [1000, 500, 250, 125, 90]
    assert said[0] == "out of memory: the step is repeated with micro-batches of 500 tokens (CUDA out of memory)"
    with pytest.raises(UserError, match="one rollout of 200 tokens does not fit in memory"):
        halving(work, 1000, 200, torch.device("cpu"), said.append)


def test_other_errors_pass_through():
    def work(budget):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        halving(work, 1000, 90, torch.device("cpu"), print)
