"""Settings of the reproduce command: a grid of runs, how they are scored, and four grids that have names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.config_files import checked, nearest
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.fields import setting
from poweropd_lite.rewards.table import REWARDS as TABLE

PAPER_REWARDS = ("full_kl", "log_ratio", "clip", "tanh", "zscore", "power")  # in the order of the paper's tables
REWARDS = (*PAPER_REWARDS, *(name for name in TABLE if name not in PAPER_REWARDS))
# What a column of the grid sets. The plain one is the paper's description, top-k 20 and top-p 0.95 the released code's.
COLUMNS: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0, "top_p": 1.0},
    "truncated-full": {"top_k": 20, "top_p": 0.95, "score": "full"},
    "truncated-sampled": {"top_k": 20, "top_p": 0.95, "score": "sampled"},
}
# The laboratory's: as plain, and one thing beside the reward. With rewards of PLAIN alone, for one axis varies at a time.
BESIDE: dict[str, dict[str, Any]] = {
    **{f"keep-{name}": {"keep": name} for name in ("dial", "entropy", "abs", "random")},
    "weight-remaining": {"weight": "remaining"},
    "weight-horizon": {"weight": "horizon"},
    "baseline-own": {"baseline": "own"},
}
BESIDE = {column: COLUMNS["plain"] | values for column, values in BESIDE.items()}
PLAIN = ("log_ratio", "power")
TRUNCATED = "truncated"  # full_kl has no score: its two truncated columns are one run


def _listed(value: Any) -> Any:
    """A flag comes as text: the items between its commas."""
    if value is None or isinstance(value, list):
        return value
    return [item.strip() for item in str(value).split(",") if item.strip()]


def _names(flag: str, known: Iterable[str], groups: dict[str, Iterable[str]]) -> BeforeValidator:
    """Takes some of the names `known`, or a group of them; gives them in the order of `known`."""

    def chosen(value: Any) -> list[str]:
        found = [name for item in _listed(value) for name in groups.get(item, (item,))]
        for name in found:
            if name not in known:
                apart = "; alphas are typed apart: --rewards power --alphas 1,10" * name.startswith("power")
                raise UserError(f"--{flag}: no {flag.removesuffix('s')} named '{name}'{apart or nearest(name, known)}")
        return [name for name in known if name in found]

    return BeforeValidator(chosen)


LIST: dict[str, Any] = {"min_length": 1, "validate_default": True}
_ascending = AfterValidator(lambda values: sorted(set(values)))
Pairs = Annotated[list[str] | None, BeforeValidator(_listed)]
Rewards = Annotated[list[str], _names("rewards", REWARDS, {"all": PAPER_REWARDS, "lab": REWARDS})]
Alphas = Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], BeforeValidator(_listed), _ascending]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], BeforeValidator(_listed), _ascending]
Columns = Annotated[list[str], _names("columns", [*COLUMNS, *BESIDE], {"all": COLUMNS, "lab": ["plain", *BESIDE]})]


class ReproduceConfig(BaseModel):
    """One queue of runs. Fields are flags of the reproduce command, beside all of training's. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    preset: Literal["paper", "tiny", "lab", "smoke"] | None = setting(
        None,
        "a grid with a name, which other flags change: paper is the whole of Tables 2 to 4, tiny the bundled pair's table, "
        "lab that of every reward and of what can stand beside one (docs/lab.md), smoke a minute's try",
        section="reproduce",
    )
    pairs: Pairs = setting(
        None,
        "joined by commas: shipped configs such as qwen3-0.6b-4b, bundled, YAML files; all: the paper's four as LoRA",
        min_length=1,
    )
    rewards: Rewards = setting(
        "all",
        "joined by commas: power, log_ratio, clip, tanh, zscore, full_kl, and those of docs/lab.md; all: these six; lab: every one",
        **LIST,
    )
    alphas: Alphas = setting("0.1,0.5,1,5,10,50,100,500", "exponents of the power reward, joined by commas", **LIST)
    seeds: Seeds = setting("0,1,2", "seeds of every run, joined by commas", **LIST)
    columns: Columns = setting(
        "plain",
        "how rollouts are sampled, joined by commas: plain (untruncated), truncated-full and truncated-sampled (top-k 20, "
        "top-p 0.95, and that --score); all: these; lab: plain, and for log_ratio and power keep-, weight- and baseline- of docs/lab.md",
        **LIST,
    )

    benchmarks: str | None = setting(None, "as --benchmarks of the evaluate command", section="scores")
    benchmark_folder: str | None = setting(None, "as --benchmark-folder of the evaluate command")
    problems: int | None = setting(None, "how many problems of each benchmark; all of them if not given", ge=1)
    n: int = setting(8, "samples a problem, for Avg@n and Pass@n", ge=1)
    answer_tokens: int | None = setting(None, "longest answer, as --max-new-tokens of evaluate", ge=1)

    jobs: int = setting(1, "runs side by side", section="queue", ge=1, le=64)
    output: str | None = setting(None, "folder of the queue; if not given, reproductions/ and the preset's name")
    retry_failed: bool = setting(False, "try the runs that failed once more")
    dry_run: bool = setting(False, "say what would be run and how long it takes, and write nothing")
    gpu: str | None = setting(None, "the card that --dry-run is about, as --gpu of plan; or this machine's")
    tables_only: bool = setting(False, "make the tables of what is done, and run nothing")

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        names = [f"{alpha:g}" for alpha in self.alphas]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            six = f"{twice[0]} when written with six digits, as folders and tables name them"
            raise ValueError(f"alphas: two of them are {six}; leave one out")
        if self.gpu and not self.dry_run:
            raise ValueError("--gpu is for an estimate of another card; type --dry-run with it, or leave it out")
        return self


AXES = ("rewards", "alphas", "seeds", "columns")
SCORING = ("benchmarks", "benchmark_folder", "problems", "n", "answer_tokens")
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"pairs": "all", "benchmarks": "all", "answer_tokens": 4096},
    "tiny": {"pairs": BUNDLED, "alphas": "1,10", "columns": "all", "problems": 256, "jobs": 2, "steps": 100},
    "lab": {
        **{"pairs": BUNDLED, "rewards": "lab", "columns": "lab", "alphas": "10", "problems": 128, "jobs": 2},
        **{"steps": 60, "horizon": 16},  # of completions of about sixty tokens
    },
    "smoke": {
        **{"pairs": BUNDLED, "rewards": "log_ratio,power", "alphas": "10", "seeds": "0", "problems": 32, "n": 2},
        **{"jobs": 2, "steps": 10, "save_every": 4},  # so that a kill has something to go on from
    },
}
# What to type instead of a setting of training that the grid sets (marked so in base/config.py), or that names models.
INSTEAD = {
    "reward": "--rewards",
    "alpha": "--alphas",
    "seed": "--seeds",
    "config": "--pairs with its name or file",
    **dict.fromkeys(("student", "teacher"), "--pairs with a YAML file that names it"),
    **dict.fromkeys(("top_k", "top_p", "score"), "--columns truncated-full or truncated-sampled"),
    **dict.fromkeys(("keep", "weight", "baseline"), "--columns keep-dial, weight-remaining or the like"),
}


def split_settings(settings: dict[str, Any]) -> tuple[ReproduceConfig, dict[str, Any], set[str]]:
    """Returns the queue's settings, those of training, and the names of all that were given, by a flag or the preset.

    Raises UserError for what the grid sets itself, flags that mean nothing beside each other, or a bad value.
    """
    lists = {key: ",".join(map(str, value)) for key, value in settings.items() if isinstance(value, list | tuple)}
    settings = settings | lists | {key: str(value) for key, value in settings.items() if isinstance(value, Path)}
    typed = {key for key, value in settings.items() if value is not None and value is not False}
    for name in typed:
        if name in INSTEAD:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is set by the grid, a run at a time; leave it out, and type {INSTEAD[name]}")
    if "tables_only" in typed and (others := sorted(typed - {"tables_only", "preset", "output"})):
        flags = ", ".join("--" + name.replace("_", "-") for name in others)
        raise UserError(f"--tables-only takes everything from the folder, so {flags} means nothing there; leave it out")
    values = PRESETS.get(str(settings.get("preset")), {}) | {k: v for k, v in settings.items() if k not in INSTEAD}
    own = {key: value for key, value in values.items() if key in ReproduceConfig.model_fields}
    config = checked(ReproduceConfig, own)
    if {"alphas", "rewards"} <= typed and not any("alpha" in TABLE[name].settings for name in config.rewards):
        why = "are exponents of the power reward, which --rewards does not name"
        raise UserError(f"--alphas {why}; add power, or leave them out")
    return config, {key: value for key, value in values.items() if key not in own}, set(values)
