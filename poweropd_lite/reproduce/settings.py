"""Settings of the reproduce command: a grid of runs, how they are scored, and three grids that have names.

In a file of its own because command_config.py, where the other commands have theirs, would grow past one sitting's reading.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from poweropd_lite.base.config import BUNDLED, section
from poweropd_lite.base.config_files import checked, nearest
from poweropd_lite.base.errors import UserError

PAPER_PAIRS = ("qwen3-0.6b-4b", "qwen3-0.6b-8b", "qwen3-1.7b-4b", "qwen3-1.7b-8b")  # as LoRA
REWARDS = ("full_kl", "log_ratio", "clip", "tanh", "zscore", "power")  # in the order of the paper's tables
# What a column of the grid sets. The plain one is the paper's description, top-k 20 and top-p 0.95 the released code's.
COLUMNS: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0, "top_p": 1.0},
    "truncated-full": {"top_k": 20, "top_p": 0.95, "score": "full"},
    "truncated-sampled": {"top_k": 20, "top_p": 0.95, "score": "sampled"},
}
TRUNCATED = "truncated"  # full_kl has no score: its two truncated columns are one run


class ReproduceConfig(BaseModel):
    """One queue of runs. Fields are flags of the reproduce command, beside all of training's. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    preset: Literal["paper", "tiny", "smoke"] | None = Field(
        None,
        description="a grid with a name, which other flags change: paper is the whole of Tables 2 to 4, tiny the bundled pair's table, smoke a minute's try",
        json_schema_extra=section("reproduce"),
    )
    pairs: str | None = Field(
        None,
        min_length=1,
        description="joined by commas: shipped configs such as qwen3-0.6b-4b, bundled, YAML files; all: the paper's four as LoRA",
    )
    rewards: str = Field(
        "all",
        min_length=1,
        description="joined by commas: power, log_ratio, clip, tanh, zscore, full_kl; all: these six",
    )
    alphas: str = Field(
        "0.1,0.5,1,5,10,50,100,500", min_length=1, description="exponents of the power reward, joined by commas"
    )
    seeds: str = Field("0,1,2", min_length=1, description="seeds of every run, joined by commas")
    columns: str = Field(
        "plain",
        min_length=1,
        description="how rollouts are sampled, joined by commas: plain (untruncated), truncated-full and truncated-sampled (top-k 20, top-p 0.95, and that --score)",
    )

    benchmarks: str | None = Field(
        None, min_length=1, description="as --benchmarks of the evaluate command", json_schema_extra=section("scores")
    )
    benchmark_folder: str | None = Field(None, description="as --benchmark-folder of the evaluate command")
    problems: int | None = Field(
        None, ge=1, description="how many problems of each benchmark; all of them if not given"
    )
    n: int = Field(8, ge=1, description="samples a problem, for Avg@n and Pass@n")
    answer_tokens: int | None = Field(None, ge=1, description="longest answer, as --max-new-tokens of evaluate")

    jobs: int = Field(1, ge=1, le=64, description="runs side by side", json_schema_extra=section("queue"))
    out: str | None = Field(
        None, min_length=1, description="folder of the queue; if not given, reproductions/ and the preset's name"
    )
    retry_failed: bool = Field(False, description="try the runs that failed once more")
    dry_run: bool = Field(False, description="say what would be run and how long it takes, and write nothing")
    gpu: str | None = Field(
        None,
        min_length=1,
        description="the card that --dry-run is about, as --gpu of plan; if not given, this machine's",
    )
    tables_only: bool = Field(False, description="make the tables of what is done, and run nothing")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"pairs": "all", "benchmarks": "all", "answer_tokens": 4096},
    "tiny": {
        "pairs": BUNDLED,
        "alphas": "1,10",
        "columns": "plain,truncated-full,truncated-sampled",
        "problems": 256,
        "jobs": 2,
        "steps": 100,
    },
    "smoke": {
        "pairs": BUNDLED,
        "rewards": "log_ratio,power",
        "alphas": "10",
        "seeds": "0",
        "problems": 32,
        "n": 2,
        "jobs": 2,
        "steps": 10,
        "save_every": 4,  # so that a kill has something to go on from
    },
}

AXES = ("pairs", "rewards", "alphas", "seeds", "columns")
SCORING = ("benchmarks", "benchmark_folder", "problems", "n", "answer_tokens")
# What the grid sets in every run, and what to type instead.
SET_BY_GRID = {
    "reward": "--rewards",
    "alpha": "--alphas",
    "seed": "--seeds",
    "output": "--out, which holds all runs",
    "config": "--pairs with its name or file",
    "student": "--pairs with a YAML file that names it",
    "teacher": "--pairs with a YAML file that names it",
    "top_k": "--columns truncated-full or truncated-sampled",
    "top_p": "--columns truncated-full or truncated-sampled",
    "score": "--columns truncated-full or truncated-sampled",
}


def split_settings(settings: dict[str, Any]) -> tuple[ReproduceConfig, dict[str, Any], set[str]]:
    """Returns the queue's settings, those of training, and the names of all that were given, by a flag or the preset.

    Raises UserError for what the grid sets itself, an unknown name, or a bad value.
    """
    for name in settings:
        if name in SET_BY_GRID and settings[name] is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is set by the grid, a run at a time; leave it out, and type {SET_BY_GRID[name]}"
            )
    texts = {k: ",".join(map(str, v)) for k, v in settings.items() if isinstance(v, list | tuple)}
    texts |= {k: str(v) for k, v in settings.items() if isinstance(v, Path)}
    settings = {k: v for k, v in (settings | texts).items() if k not in SET_BY_GRID}
    _check_together({k for k, v in settings.items() if v is not None and v is not False}, settings)
    preset = settings.get("preset")
    if preset is not None and preset not in PRESETS:
        raise UserError(f"preset: found {preset!r}, but there are {', '.join(PRESETS)}")
    values = (PRESETS[preset] if preset else {}) | settings
    own = {k: v for k, v in values.items() if k in ReproduceConfig.model_fields}
    own |= {k: str(own[k]) for k in (*AXES, "out") if own.get(k) is not None}
    training = {k: v for k, v in values.items() if k not in ReproduceConfig.model_fields}
    return checked(ReproduceConfig, own), training, set(values)


def _check_together(typed: set[str], settings: dict[str, Any]) -> None:
    """Raises UserError for flags that mean nothing beside each other."""
    if "tables_only" in typed and (others := sorted(typed - {"tables_only", "preset", "out"})):
        flags = ", ".join("--" + name.replace("_", "-") for name in others)
        raise UserError(f"--tables-only takes everything from the folder, so {flags} means nothing there; leave it out")
    if "gpu" in typed and "dry_run" not in typed:
        raise UserError("--gpu is for an estimate of another card; type --dry-run with it, or leave it out")
    if "alphas" in typed and "rewards" in typed and "power" not in reward_names(str(settings["rewards"])):
        raise UserError(
            "--alphas are exponents of the power reward, which --rewards does not name; add power, or leave them out"
        )


def words(text: str, flag: str) -> list[str]:
    """Returns the words of a comma-separated list, each once; raises UserError for none."""
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise UserError(f"--{flag}: found {text!r}, which names nothing; --help says what it takes")
    return found


def reward_names(text: str) -> list[str]:
    """Returns the rewards of --rewards in the tables' order."""
    found = [name for word in words(text, "rewards") for name in (REWARDS if word == "all" else (word,))]
    for name in found:
        if name not in REWARDS:
            hint = "; alphas are typed apart: --rewards power --alphas 1,10" if name.startswith("power") else None
            raise UserError(f"--rewards: no reward named '{name}'{hint or nearest(name, REWARDS)}")
    return [name for name in REWARDS if name in found]


def column_names(text: str) -> list[str]:
    """Returns the columns of --columns in the tables' order."""
    found = [name for word in words(text, "columns") for name in (COLUMNS if word == "all" else (word,))]
    for name in found:
        if name not in COLUMNS:
            raise UserError(f"--columns: no column named '{name}'{nearest(name, COLUMNS)}")
    return [name for name in COLUMNS if name in found]


def alpha_values(text: str) -> list[float]:
    """Returns the exponents of --alphas, ascending."""
    values = []
    for word in words(text, "alphas"):
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0 < value <= 1e6:
            raise UserError(
                f"--alphas: found {word!r}, but an alpha is a number above 0 and at most 1e6, such as --alphas 1,10"
            )
        values.append(value)
    names = [f"{value:g}" for value in sorted(set(values))]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"--alphas: two of them are {twice[0]} when written with six digits, as folders and tables name them; leave one out"
        )
    return sorted(set(values))


def seed_values(text: str) -> list[int]:
    """Returns the seeds of --seeds, ascending."""
    found = words(text, "seeds")
    for word in found:
        if not (word.isascii() and word.isdigit() and int(word) < 2**32):
            raise UserError(f"--seeds: found {word!r}, but a seed is a whole number below 2^32, such as --seeds 0,1,2")
    return sorted({int(word) for word in found})
