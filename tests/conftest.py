"""Shared pieces: one thread (the models are small), the bundled pair loaded once, and a run that takes seconds."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in what the tests start, too: there is a worker a core
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub for anything; read once, when the library is imported
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on a CPU, in numpy; read when a kernel's file is imported
os.environ["CUDA_VISIBLE_DEVICES"] = (
    ""  # these are a CPU's tests, on a machine with a card too; benchmarks/gpu is a card's
)

import forked
import pytest
import torch
import transformers
from sharing import made_once

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.cli import run_command

torch.set_num_threads(1)
transformers.utils.logging.get_logger()  # takes the stderr of now, not one that a test captures and closes

TINY = Path(__file__).parent.parent / "poweropd_lite" / "tiny"
DATA = str(Path(__file__).parent / "problems.jsonl")  # the first 256 bundled problems: all 8,192 take a second to read
QUICK = {
    "steps": 4,
    "eval_problems": 8,
    "eval_samples": 2,
    "eval_every": 2,
    "batch_size": 8,
    "save_every": 2,
    "data": DATA,
}


LONG = ("test_reproduce", "test_resume", "test_notebooks", "test_audit.", "test_advise.", "test_train.", "test_export.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that take longest, so that no worker waits for one of them at the end."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if name in item.nodeid), len(LONG)))


@pytest.fixture
def quick_config(tmp_path) -> Config:
    """The bundled pair for four steps of eight rollouts, into a folder of its own."""
    return load_config("bundled", **QUICK, output=str(tmp_path / "run"))


@pytest.fixture(scope="session")
def pair():
    """The bundled pair's tokenizers, stop ids and forbidden ids."""
    from poweropd_lite.checks.pair import load_pair

    return load_pair(load_config("bundled"))


@pytest.fixture(scope="session")
def prompts(pair):
    """The bundled training prompts."""
    from poweropd_lite.problems.reading import load_prompts

    return load_prompts(load_config("bundled"), pair.tokenizer)[0]


@pytest.fixture
def student_model():
    """The bundled base student in float32, fresh."""
    from poweropd_lite.models.loading import load_causal_lm

    return load_causal_lm("bundled", "student", torch.float32).eval()


@pytest.fixture(scope="session")
def teacher_model():
    """The bundled teacher in float64; not to be changed."""
    from poweropd_lite.models.loading import load_causal_lm

    return load_causal_lm("bundled", "teacher", torch.float64).eval()


@pytest.fixture
def rollouts(student_model, prompts, pair):
    """Twelve rollouts of the base student."""
    return make_rollouts(student_model, prompts[:12], pair)


def make_engine(model, pair, dtype=torch.float32):
    """Returns the built-in engine of a plain `model`."""
    from poweropd_lite.engines.loop import LoopEngine
    from poweropd_lite.models.student import Student

    engine = LoopEngine(Student(model, torch.device("cpu"), dtype), pair.stop_ids, say=print)
    engine.sync()
    return engine


def make_rollouts(model, prompts, pair, sampling=None, longest=60, rows=None):
    """Returns one rollout of `model` for each of `prompts`, with the random numbers of `rows` (0, 1, ...) of step 0."""
    from poweropd_lite.method.logprobs import Sampling
    from poweropd_lite.method.rollout import TRAINING, Draws

    sampling = sampling or Sampling(forbidden=torch.tensor(pair.forbidden))
    draws = Draws(0, TRAINING, 0, tuple(range(len(prompts)) if rows is None else rows))
    return make_engine(model, pair).sample([p.ids for p in prompts], draws, sampling, longest)


def run_python(*args: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    """Runs a Python started anew to its end: for what is read or measured at its very start, and to compare with."""
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=300, **options)


def run_here(
    main: Callable[[list[str]], int | None], *flags: str, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Runs a command's `main` in this process, with what it has loaded, traced and cached."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd or "."), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:  # fmt: skip
        run_command(lambda: main(list(flags)))
    return subprocess.CompletedProcess(flags, ended.value.code or 0, out.getvalue(), err.getvalue())


def run_train(*flags: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs the real train command to its end."""
    return forked.run("-m", "poweropd_lite.train", *flags, cwd=cwd)


def run_evaluate(*flags: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs the real evaluate command to its end."""
    return forked.run("-m", "poweropd_lite.evaluate", *flags, cwd=cwd)


def run_export(*flags: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs the real export command to its end."""
    return forked.run("-m", "poweropd_lite.export", *flags, cwd=cwd)


def quick_flags(**changes) -> list[str]:
    """The quick run as flags, with some changed."""
    values = {**QUICK, **changes}
    return [word for key, value in values.items() for word in ("--" + key.replace("_", "-"), str(value))]


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a quick run that scored eight problems after its last step, twice sampled."""

    def train(folder):
        done = run_train("--config", "bundled", *quick_flags(eval_every=0), "--output", "run", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "evaluate:    python -m poweropd_lite.evaluate --model run" in done.stdout

    return made_once(tmp_path_factory, "trained", train)


@pytest.fixture
def other(tmp_path):
    """Returns a function that copies a bundled model, lets a function change the copy, and returns its folder."""

    def copy(role, change):
        folder = tmp_path / f"{role}{len(list(tmp_path.iterdir()))}"
        shutil.copytree(TINY / role, folder)
        change(folder)
        return str(folder)

    return copy


def edit(name, function):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(function(json.loads(path.read_text()))))

    return change
