"""From a grid to its tasks: every cell's name and settings, and the models that its runs begin with and learn from."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, get_args

from poweropd_lite.base.config import BUNDLED, Config, full_name, load_config, marked
from poweropd_lite.base.config_files import PAPER_PAIRS, changed, config_path, read_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.named import names_models
from poweropd_lite.base.teachers import SELF
from poweropd_lite.reproduce.settings import BESIDE, COLUMNS, PLAIN, REWARDS, TRUNCATED, ReproduceConfig
from poweropd_lite.rewards.table import reward_of

Role = Literal["run", "base", "teacher"]
Stage = Literal["train", "evaluate"]
State = Literal["waiting", "running", "done", "failed"]
STAGES: tuple[Stage, ...] = get_args(Stage)
STATES: tuple[State, ...] = get_args(State)
WAITING, RUNNING, DONE, FAILED = STATES


@dataclass
class Task:
    """One entry of the queue, and how far it is: a run that is trained and scored, or a model that is only scored."""

    name: str  # of its folder, its log and its entry in queue.json
    role: Role
    pairs: list[str]  # the pairs whose tables it stands in: one for a run
    reward: str = ""
    alpha: float | None = None  # of the power reward
    column: str = ""
    seed: int = 0
    stage: Stage = "train"  # the next one, or the one in hand
    state: State = WAITING
    message: str | None = None  # why it failed
    seconds: dict[Stage, float] = field(default_factory=dict)  # of all its processes
    side_by_side: int = 1  # the most processes at once while it was trained

    @property
    def pair(self) -> str:
        """The first of its pairs, whose settings it has."""
        return self.pairs[0]

    @property
    def kind(self) -> str:
        """What memory and time depend on beside the pair: a full vocabulary takes other ones than sampled tokens."""
        whole = self.reward and (reward_of(self.reward).pay is None or self.column == "baseline-own")
        return "full_kl" if whole else "sampled"

    @property
    def label(self) -> str:
        """Its row in the tables: power 10, log_ratio, base."""
        label = self.reward or self.role
        label = label if self.alpha is None else f"{label} {self.alpha:g}"
        return f"{label} {self.column.replace('-', ' ')}" if self.column in BESIDE else label

    @property
    def log(self) -> str:
        """The file, in the queue's folder, with its commands and what they said."""
        return f"logs/{self.name}.log"

    def settings(self) -> dict[str, Any]:
        """What the grid sets in this run, beside its pair's settings."""
        column = {**COLUMNS, **BESIDE}["truncated-full" if self.column == TRUNCATED else self.column]
        alpha = {"alpha": self.alpha} if self.alpha else {}
        return {"reward": self.reward, **alpha, "seed": self.seed, **column}


def as_flags(values: dict[str, Any]) -> list[str]:
    """Returns settings as they are typed; None is left out."""
    return [f"--{key.replace('_', '-')}={value}" for key, value in values.items() if value is not None]


def pair_settings(pair: Config) -> dict[str, Any]:
    """Returns the settings that all runs of a pair share: all but the grid's."""
    return pair.model_dump(exclude=set(marked("grid")))


def run_config(pair: Config, task: Task) -> Config:
    """Returns the settings of a run; raises UserError for what train would refuse."""
    return load_config(**pair_settings(pair), **task.settings())


def load_pair(config: str | None, values: dict[str, Any]) -> Config:
    """Returns a pair: a config with `values` on top. Its score, which the grid sets, goes with every stop mode.

    What is auto by the card's memory is as on a CPU: runs may share a card, and their seconds and GiB are compared.
    """
    pair = load_config(config, **{**values, "score": "full"})
    return changed(pair, **pair.sizes)


def load_pairs(names: list[str], training: dict[str, Any]) -> dict[str, Config]:
    """Returns by name each pair of --pairs with training's flags on top; raises UserError for what can't be run.

    Training's own evaluation is off, for the queue scores the end, unless it was asked for.
    """
    found: dict[str, Config] = {}
    for item in dict.fromkeys(n for name in names for n in (PAPER_PAIRS if name == "all" else (name,))):
        path = config_path(item)
        name, values = path.stem, read_yaml(path)
        if name in found:
            raise UserError(f"--pairs names two pairs called {name}, which would share folders; rename one file")
        if not names_models(values, {}):
            raise UserError(f"{path} names no student and no teacher, so it is no pair; add these two lines to it")
        if extras := ", ".join(sorted(marked("grid") & set(values))):
            raise UserError(f"{path} sets {extras}, which the grid sets a run at a time; take it out of the file")
        if {**values, **training}.get("eval_grader"):
            raise UserError("reproduce's tables are of answers that are right or wrong; leave out --eval-grader")
        found[name] = load_pair(item, {"eval_benchmarks": None, "eval_every": 0, **training})
        if found[name].served:
            raise UserError(
                f"the teacher of {path} is served, and a reproduction scores the teacher's own answers; name a hub id or folder "
                "there, or train its runs one by one"
            )
        if found[name].teacher == SELF:
            raise UserError(
                f"the teacher of {path} is the student's own base, and a reproduction scores the teacher's own answers; name a "
                "hub id or folder there, or train its runs one by one"
            )
    return found


def make_tasks(config: ReproduceConfig, pairs: dict[str, Config], all_pairs: dict[str, Config]) -> list[Task]:
    """Returns the runs of a grid over `pairs`, and the models of `all_pairs` in the folder, in their order of work."""
    tasks: dict[str, Task] = {}
    for pair, reward, column, seed in product(pairs, config.rewards, config.columns, config.seeds):
        if column in BESIDE and reward not in PLAIN:
            continue
        column = TRUNCATED if reward_of(reward).pay is None and column != "plain" else column
        for alpha in config.alphas if "alpha" in reward_of(reward).settings else [None]:
            name = f"{pair}-{reward}{'' if alpha is None else f'{alpha:g}'}-{column}-seed{seed}"
            tasks[name] = Task(name, "run", [pair], reward, alpha, column, seed)
    if not tasks:
        raise UserError(
            f"--columns of docs/lab.md go with {' and '.join(PLAIN)}; add one of them to --rewards, or plain to them"
        )
    for task in tasks.values():  # what train would refuse is refused now
        run_config(pairs[task.pair], task)
    return in_order([*tasks.values(), *model_tasks(all_pairs)])


def in_order(tasks: Iterable[Task]) -> list[Task]:
    """Returns tasks as they are worked on: one run (it tells how long the rest takes), the models, a seed at a time."""
    tasks = list(tasks)
    pairs = list(dict.fromkeys(task.pair for task in tasks))

    def key(task: Task) -> tuple[Any, ...]:
        return task.seed, pairs.index(task.pair), -REWARDS.index(task.reward), task.alpha or 0.0, task.column

    runs = sorted((task for task in tasks if task.role == "run"), key=key)
    return [*runs[:1], *(task for task in tasks if task.role != "run"), *runs[1:]]


def model_tasks(pairs: dict[str, Config]) -> list[Task]:
    """Returns the evaluations of each pair's base student and teacher; one that pairs have in common is made once."""
    found: dict[tuple[str, ...], Task] = {}
    sides: dict[Role, str] = {"base": "student", "teacher": "teacher"}
    for name, pair in pairs.items():
        for (role, side), short in zip(sides.items(), short_names(pair), strict=True):
            key = tuple(model_flags(pair, role))
            if key in found:
                found[key].pairs.append(name)
                continue
            bits = f"-{pair.teacher_bits}bit" * (role == "teacher")
            title = f"bundled-{side}" if getattr(pair, side) == BUNDLED else f"{role}-{short.lower()}{bits}"
            if any(task.name == title for task in found.values()):  # asked with another prompt, say
                title = f"{title}-{name}"
            found[key] = Task(title, role, [name], stage="evaluate")
    return list(found.values())


def short_names(pair: Config) -> tuple[str, str]:
    """Returns a pair's student and teacher without the folders or owners before their names."""
    names = full_name(pair.student, "student"), full_name(pair.teacher, "teacher")
    return names[0].rstrip("/").rsplit("/", 1)[-1], names[1].rstrip("/").rsplit("/", 1)[-1]


def everything(pair: Config) -> str:
    """Returns what a pair's models are scored on where nobody says: of a run it would be what its training was scored on."""
    return BUNDLED if pair.student == BUNDLED else "all"


def model_flags(pair: Config, role: Role) -> list[str]:
    """Returns evaluate's flags for a pair's base student or teacher: the teacher in the bits that it scores with."""
    base = role == "base"
    model, bits = (pair.student, pair.student_bits) if base else (pair.teacher, pair.teacher_bits)
    model = full_name(model, "student" if base else "teacher")
    values = {"model": model, "bits": 4 if bits == 4 else 16}  # evaluate knows no 8 bits: docs/reproduce.md
    values |= {"prompt_suffix": pair.prompt_suffix, "system_prompt": pair.system_prompt}
    if pair.template_kwargs:
        values["template_kwargs"] = json.dumps(pair.template_kwargs, sort_keys=True)
    thinking = "--enable-thinking" if pair.enable_thinking else "--no-enable-thinking"
    return [*as_flags(values), thinking, "--seed=0", *machine_flags(pair, "float32" if bits == 32 else pair.dtype)]


def machine_flags(pair: Config, dtype: str) -> list[str]:
    """Returns evaluate's flags for where and how a pair's models run."""
    values = {"dtype": dtype, "engine": pair.engine, "threads": pair.threads or "auto"}
    flags = as_flags({key: value for key, value in values.items() if value != "auto"})
    return flags + ["--trust-remote-code"] * pair.trust_remote_code
