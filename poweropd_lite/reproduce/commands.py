"""The commands that do a queue's work, as they can be typed: module and flags."""

from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED, Config

if TYPE_CHECKING:
    from poweropd_lite.reproduce.grid import Role, Task
    from poweropd_lite.reproduce.state import Queue


def as_flags(values: dict[str, Any]) -> list[str]:
    """Returns settings as they are typed."""
    return [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]


def train_command(queue: "Queue", task: "Task", resume: bool) -> list[str]:
    """Returns what trains a run, or goes on with it."""
    folder = str(queue.run_folder(task))
    if resume:
        return ["poweropd_lite.train", "--resume", folder]
    config = str(queue.out / "pairs" / f"{task.pair}.yaml")
    return ["poweropd_lite.train", "--config", config, *as_flags(task.settings()), "--output", folder]


def evaluate_command(queue: "Queue", task: "Task") -> list[str]:
    """Returns what scores a task."""
    pair = queue.pairs[task.pair]
    names = {"answer_tokens": "max_new_tokens"}  # as evaluate calls it
    how = as_flags({names.get(key, key): value for key, value in queue.scoring.items() if value is not None})
    if task.role == "run":
        flags = ["--model", str(queue.run_folder(task)), *how, *_machine_flags(pair, pair.dtype)]
    else:
        flags = [*model_flags(pair, task.role), *how]
    return ["poweropd_lite.evaluate", *flags, "--output", str(queue.scores_folder(task))]


def model_flags(pair: Config, role: "Role") -> list[str]:
    """Returns evaluate's flags for a pair's base student or teacher: the teacher in the bits that it scores with."""
    base = role == "base"
    model, bits = (pair.student, pair.student_bits) if base else (pair.teacher, pair.teacher_bits)
    values = {
        "model": model if model != BUNDLED else "bundled-student" if base else "bundled-teacher",
        "bits": 4 if bits == 4 else 16,  # evaluate knows no 8 bits: docs/reproduce.md
        "prompt_suffix": pair.prompt_suffix,
        "system_prompt": pair.system_prompt,
    }
    thinking = "--enable-thinking" if pair.enable_thinking else "--no-enable-thinking"
    return [*as_flags(values), thinking, "--seed=0", *_machine_flags(pair, "float32" if bits == 32 else pair.dtype)]


def _machine_flags(pair: Config, dtype: str) -> list[str]:
    values = {"dtype": dtype, "engine": pair.engine, "threads": pair.threads}
    flags = as_flags({key: value for key, value in values.items() if value not in ("auto", 0)})
    return flags + ["--trust-remote-code"] * pair.trust_remote_code
