"""A real vLLM server on the loopback address as the teacher: the loaded teacher's numbers, through faults too."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest
from conftest import UNSCORED, run_code, run_train, steps
from teacher_server import Proxy, code, cut_off, never

from poweropd_lite.models.loading import model_path

NAME = "bundled-teacher"
# Three steps, each of several requests; the loop samples, so that the teacher alone differs between runs.
RUN = [*UNSCORED, "--steps", "3", "--batch-size", "8", "--max-new-tokens", "60", "--token-budget", "400"]
RUN += ["--max-prompt-tokens", "100", "--engine", "loop", "--loader", "peft", "--output", "run"]


def serve(dtype: str, folder, port: str | None = None, role: str = "teacher") -> tuple[subprocess.Popen, str]:
    """Starts a server of the bundled teacher, or of the student under the teacher's name."""
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model_path("bundled", role)]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", port, "--dtype", dtype, "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(2**26), "--max-num-seqs", "32", "--max-num-batched-tokens", "2048"]
    here = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    with open(folder / dtype, "ab") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **here, "OMP_NUM_THREADS": "1"})
    return started, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two servers of the bundled teacher: their addresses by dtype; `restart` of one begins it anew, as of another role."""
    folder = tmp_path_factory.mktemp("servers")
    started = {dtype: serve(dtype, folder) for dtype in ("float32", "bfloat16")}

    def restart(dtype: str, role: str) -> None:
        process, address = started[dtype]
        process.terminate()  # its workers end with it
        process.wait(60)
        started[dtype] = serve(dtype, folder, address.rpartition(":")[2], role)
        wait(dtype)

    def wait(dtype: str) -> None:
        process, address = started[dtype]
        up = False
        while not up:
            assert process.poll() is None, (folder / dtype).read_text()[-3000:]
            with contextlib.suppress(httpx.HTTPError):
                up = httpx.get(f"{address}/health").status_code == 200
            time.sleep(0.1)

    try:
        for dtype in started:
            wait(dtype)
        yield {"restart": restart, **{dtype: address for dtype, (_, address) in started.items()}}
    finally:
        for process, _ in started.values():
            process.terminate()
        for process, _ in started.values():
            process.wait(60)


GAPS = """
import json, sys, torch
from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.pair import load_pair
from poweropd_lite.method.batch import Stops, loss_lengths, micro_batches
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import token_logprobs
from poweropd_lite.models.served import connect
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.problems.bundled import problems
from poweropd_lite.problems.prompts import prompt_text
torch.set_num_threads(1)
address, bits = sys.argv[1], int(sys.argv[2])
config = load_config("bundled", teacher=address, teacher_name="bundled-teacher")
pair, cpu = load_pair(config), torch.device("cpu")
rollouts = []
for problem in list(problems(0, 24, False)):
    text = prompt_text([{"role": "user", "content": problem.question}], pair.tokenizer, {"enable_thinking": False})
    prompt, answer = (pair.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, problem.solution))
    rollouts.append(Rollout(tuple(prompt), (*answer, pair.teacher_stop), (0.0,) * (len(answer) + 1), "stop"))
stops = Stops("cross_eos", pair.teacher_stop)
parts, count = micro_batches(rollouts, 600, stops, cpu), sum(loss_lengths(rollouts, stops))
loaded = load_teacher("bundled", bits, cpu, torch.float32)
ours, theirs = (token_logprobs(m, parts, count, "teacher") for m in (connect(config, print), loaded))
gap = (ours - theirs).abs()
try:
    connect(load_config("bundled", teacher=address, teacher_name="other", teacher_tokenizer="bundled"), print)
except UserError as error:
    refused = str(error)
found = {"count": count, "parts": len(parts), "mean": gap.mean().item(), "max": gap.max().item(), "refused": refused}
found["p"] = (ours.exp() - theirs.exp()).abs().max().item()
print("RESULT " + json.dumps(found))
"""
# float32: the order of sums. bfloat16 has 8 bits, and a chain of layers rounds at every product, here and there otherwise.
BOUNDS = {"float32": (1e-5, 1e-4), "bfloat16": (1e-3, 0.2)}  # nats a token: on average, and at most


@pytest.mark.parametrize("dtype, bits", [("float32", 32), ("bfloat16", 16)])
def test_log_p_is_the_loaded_teachers_within_rounding(dtype, bits, servers, tmp_path):
    found = run_code(GAPS, servers[dtype], str(bits), cwd=tmp_path, imported="peft")
    print(dtype, found)
    assert found["count"] > 700 and found["parts"] > 3
    mean, most = BOUNDS[dtype]
    assert found["mean"] < mean and found["max"] < most, found
    assert "serves bundled-teacher, and not other; type --teacher-name" in found["refused"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The metrics of the same run with the teacher loaded."""
    folder = tmp_path_factory.mktemp("loaded")
    done = run_train(*RUN, "--teacher-bits", "32", cwd=folder, imported="peft")
    assert done.returncode == 0, done.stderr[-2000:]
    return steps(folder / "run")


def assert_alike(ours: list[dict], theirs: list[dict]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one["step"], one["tokens/loss"]) == (other["step"], other["tokens/loss"])  # the same completions
        for key in ("logprob/teacher", "kl/train", "reward/mean", "loss", "optim/grad_norm"):
            assert one[key] == pytest.approx(other[key], abs=2e-5), key


def test_a_run_through_faults_equals_that_with_the_teacher_loaded(servers, loaded, tmp_path):
    proxy = Proxy(servers["float32"])
    try:
        # Two requests at the start, then 1 + 3 or so a step; after a fault two more are the server's check.
        proxy.faults = [*[None] * 4, code(500), *[None] * 6, cut_off, *[None] * 6, code(503)]
        flags = ["--teacher", proxy.address, "--teacher-name", NAME]
        served = run_train(*RUN, *flags, cwd=tmp_path, imported="peft")
    finally:
        proxy.close()
    assert served.returncode == 0, served.stdout[-2000:] + served.stderr[-2000:]
    assert served.stdout.count("the teacher answers again") >= 2 and proxy.faults == []
    assert [line["step"] for line in loaded] == [1, 2, 3]
    assert_alike(steps(tmp_path / "run"), loaded)


def test_a_slow_and_a_restarted_server_are_waited_for_and_another_model_under_the_name_ends_it(
    servers, loaded, tmp_path
):
    def begun_anew(role, then):
        def fault(handler, answer):
            servers["restart"]("float32", role)
            proxy.faults = then  # requests that failed meanwhile have taken theirs
            return cut_off(handler, answer)

        return fault

    proxy = Proxy(servers["float32"])
    try:
        another = begun_anew("student", [])
        proxy.faults = [*[None] * 3, never, *[None] * 5, begun_anew("teacher", [*[None] * 9, another])]
        flags = ["--teacher", proxy.address, "--teacher-name", NAME, "--teacher-timeout", "15", "--steps", "9"]
        done = run_train(*RUN, *flags, cwd=tmp_path, imported="peft")
    finally:
        proxy.close()
    assert proxy.faults == [] and done.stdout.count("the teacher answers again") >= 2, done.stdout[-2000:]
    said = done.stdout[-3000:] + done.stderr[-2000:]
    assert done.returncode == 2 and "is another model than before" in said, said
    ours = steps(tmp_path / "run")
    assert 2 <= len(ours) < 9  # what was taken before is saved, and nothing of the other model
    assert_alike(ours[:3], loaded[: len(ours)])
