"""From a grid to its runs: every cell's name, its settings, and the commands that do its work."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import BUNDLED, Config, load_config, marked, names_models
from poweropd_lite.base.config_files import config_path, read_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.reproduce.settings import (
    COLUMNS,
    PAPER_PAIRS,
    REWARDS,
    SCORING,
    TRUNCATED,
    ReproduceConfig,
    alpha_values,
    column_names,
    reward_names,
    seed_values,
    words,
)

PAIR_FIELDS = [name for name in Config.model_fields if name not in marked("grid")]


@dataclass(frozen=True)
class Task:
    """One entry of the queue: a run that is trained and scored, or a model (role base or teacher) that is only scored."""

    name: str  # of its folder, its log and its entry in queue.json
    role: str  # run, base or teacher
    pairs: tuple[str, ...]  # the pairs whose tables it stands in: one for a run
    reward: str | None = None
    alpha: float | None = None
    column: str | None = None
    seed: int | None = None

    @property
    def pair(self) -> str:
        """The first of its pairs, whose settings it has."""
        return self.pairs[0]

    @property
    def label(self) -> str:
        """Its row in the tables: power 10, log_ratio, base."""
        return row_label(self.reward, self.alpha) if self.role == "run" else self.role

    def settings(self) -> dict[str, Any]:
        """What the grid sets in this run, beside its pair's config."""
        column = COLUMNS["truncated-full" if self.column == TRUNCATED else self.column]
        alpha = {"alpha": self.alpha} if self.alpha is not None else {}
        return {"reward": self.reward, **alpha, "seed": self.seed, **column}

    def record(self) -> dict[str, Any]:
        """Itself as JSON."""
        return asdict(self) | {"pairs": list(self.pairs)}


def row_label(reward: str | None, alpha: float | None) -> str:
    """Returns a reward as the tables name it."""
    return f"{reward} {alpha:g}" if alpha is not None else str(reward)


def read_task(record: dict[str, Any]) -> Task:
    """Returns the task of a record."""
    fields = {key: record[key] for key in ("name", "role", "pairs", "reward", "alpha", "column", "seed")}
    return Task(**fields | {"pairs": tuple(fields["pairs"])})


def load_pairs(text: str, training: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns by name the settings of each pair of --pairs with training's flags on top; raises UserError for what can't be run.

    Training's own evaluation is off, for the queue scores the end, unless it was asked for.
    """
    found: dict[str, dict[str, Any]] = {}
    for word in (name for w in words(text, "pairs") for name in (PAPER_PAIRS if w == "all" else (w,))):
        path = config_path(word)
        name, values = path.stem, read_yaml(path)
        if name in found:
            raise UserError(
                f"--pairs names two pairs called {name}, which would share folders; rename one of the files"
            )
        if not names_models(values, {}):
            raise UserError(f"{path} names no student and no teacher, so it is no pair; add these two lines to it")
        if extra := sorted(marked("grid") & set(values)):
            raise UserError(
                f"{path} sets {', '.join(extra)}, which the grid sets a run at a time; take it out of the file"
            )
        # Score full goes with every stop mode; what the columns really set is checked run by run.
        config = load_config(word, **{"eval_benchmarks": None, "eval_every": 0, "score": "full", **training})
        found[name] = {key: value for key, value in config.model_dump().items() if key in PAIR_FIELDS}
    return found


def make_tasks(
    asked: ReproduceConfig, pairs: dict[str, dict[str, Any]], all_pairs: dict[str, dict[str, Any]]
) -> list[Task]:
    """Returns the tasks of a grid over `pairs`, and the models of `all_pairs` in the folder, in the order in which they are run."""
    rewards, columns = reward_names(asked.rewards), column_names(asked.columns)
    alphas = alpha_values(asked.alphas) if "power" in rewards else []
    tasks: dict[str, Task] = {}
    for pair in pairs:
        for reward in rewards:
            for column in columns:
                column = TRUNCATED if reward == "full_kl" and column != "plain" else column
                for alpha in alphas if reward == "power" else [None]:
                    for seed in seed_values(asked.seeds):
                        title = reward if alpha is None else f"{reward}{alpha:g}"
                        name = f"{pair}-{title}-{column}-seed{seed}"
                        tasks[name] = Task(name, "run", (pair,), reward, alpha, column, seed)
    for task in tasks.values():  # what train would refuse is refused now
        load_config(**pairs[task.pair], **task.settings())
    return in_order([*tasks.values(), *model_tasks(all_pairs)])


def in_order(tasks: list[Task]) -> list[Task]:
    """Returns tasks as they are run: one run (its first steps tell how long the rest takes), the models, then a seed at a time."""
    pairs = list(dict.fromkeys(task.pair for task in tasks))

    def key(task: Task) -> tuple:
        reward = REWARDS.index(task.reward)
        return task.seed, pairs.index(task.pair), -reward, task.alpha or 0.0, task.column

    runs = sorted((task for task in tasks if task.role == "run"), key=key)
    return [*runs[:1], *(task for task in tasks if task.role != "run"), *runs[1:]]


def model_tasks(pairs: dict[str, dict[str, Any]]) -> list[Task]:
    """Returns the evaluations of each pair's base student and teacher; one that two pairs have in common is made once."""
    found: dict[tuple, Task] = {}
    for pair, values in pairs.items():
        for role in ("base", "teacher"):
            key = tuple(model_flags(values, role))
            if key in found:
                found[key] = Task(found[key].name, role, (*found[key].pairs, pair))
                continue
            name = _model_name(values, role)
            if any(task.name == name for task in found.values()):  # asked with another prompt, say
                name = f"{name}-{pair}"
            found[key] = Task(name, role, (pair,))
    return list(found.values())


def _model_name(values: dict[str, Any], role: str) -> str:
    model = values["student" if role == "base" else "teacher"]
    if model == BUNDLED:
        return "bundled-student" if role == "base" else "bundled-teacher"
    bits = f"-{values['teacher_bits']}bit" if role == "teacher" else ""
    return f"{role}-{model.rstrip('/').rsplit('/', 1)[-1].lower()}{bits}"


def model_flags(values: dict[str, Any], role: str) -> list[str]:
    """Returns evaluate's flags for a pair's base student or teacher: the teacher in the bits that it scores with."""
    model = values["student" if role == "base" else "teacher"]
    name = {"base": "bundled-student", "teacher": "bundled-teacher"}[role] if model == BUNDLED else model
    bits = values["student_bits" if role == "base" else "teacher_bits"]
    flags = [f"--model={name}", f"--bits={4 if bits == 4 else 16}"]  # evaluate knows no 8 bits: docs/reproduce.md
    dtype = "float32" if bits == 32 else values["dtype"]
    flags += [f"--prompt-suffix={values['prompt_suffix']}", f"--system-prompt={values['system_prompt']}"]
    flags += ["--enable-thinking" if values["enable_thinking"] else "--no-enable-thinking", "--seed=0"]
    return flags + ([f"--dtype={dtype}"] if dtype != "auto" else []) + _common_flags(values)


def _common_flags(values: dict[str, Any]) -> list[str]:
    flags = [f"--engine={values['engine']}"] if values["engine"] != "auto" else []
    flags += [f"--threads={values['threads']}"] if values["threads"] else []
    return flags + (["--trust-remote-code"] if values["trust_remote_code"] else [])


def run_folder(out: Path, task: Task) -> Path:
    """Returns the folder of a run; a model that is only scored has none."""
    return out / "runs" / task.name


def scores_folder(out: Path, task: Task, steps: int) -> Path:
    """Returns the folder of a task's evaluation: for a run, where evaluate itself would put it."""
    return (
        run_folder(out, task) / "eval" / f"step_{steps:06}" if task.role == "run" else out / "evaluations" / task.name
    )


def train_command(out: Path, task: Task, resume: bool) -> list[str]:
    """Returns the module and flags that train a run, or go on with it."""
    if resume:
        return ["poweropd_lite.train", "--resume", str(run_folder(out, task))]
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in task.settings().items()]
    return [
        "poweropd_lite.train",
        "--config",
        str(pair_file(out, task.pair)),
        *flags,
        "--output",
        str(run_folder(out, task)),
    ]


def evaluate_command(out: Path, task: Task, values: dict[str, Any], scoring: dict[str, Any]) -> list[str]:
    """Returns the module and flags that score a task; `values` are its pair's settings."""
    asked = {"max_new_tokens" if key == "answer_tokens" else key: scoring[key] for key in SCORING}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in asked.items() if value is not None]
    if task.role == "run":
        dtype = [f"--dtype={values['dtype']}"] if values["dtype"] != "auto" else []
        flags = ["--model", str(run_folder(out, task)), *flags, *dtype, *_common_flags(values)]
    else:
        flags = [*model_flags(values, task.role), *flags]
    return ["poweropd_lite.evaluate", *flags, "--output", str(scores_folder(out, task, values["steps"]))]


def pair_file(out: Path, pair: str) -> Path:
    """Returns the YAML file with a pair's settings, as every run of it is given them."""
    return out / "pairs" / f"{pair}.yaml"
