"""What a plan warns of: bfloat16 that a card lacks or may lack, and a run that outlasts a session of free Colab."""

from typing import Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import Finding
from poweropd_lite.base.progress import clock
from poweropd_lite.checks.machine import check_device
from poweropd_lite.plan.cards import CARDS, Machine

COLAB_CARDS = ("t4", "l4", "a100-40gb", "a100-80gb", "h100", "rtxpro6000")  # that Colab has, or calls G4
COLAB_HOURS = 12  # a session of Colab that nobody pays for lasts at most so long, by its FAQ; many end sooner


def warnings(config: Config, machine: Machine, seconds: dict[str, Any] | None) -> list[Finding]:
    """Returns what is to be known of a run on a machine, whose `seconds` are those of its report, if it has them."""
    found = [
        finding
        for finding in check_device(config, machine.cuda, machine.bfloat16, machine.name)
        if finding.level == "warning"
    ]
    if machine.gib is not None and machine.cuda and machine.capability is None and config.dtype == "auto":
        found.append(unknown_dtype(machine))
    if machine.card in map(CARDS.get, COLAB_CARDS) and seconds is not None and seconds["run"] > COLAB_HOURS * 3600:
        found.append(_session(config, machine, seconds))
    return found


def unknown_dtype(machine: Machine) -> Finding:
    """What a card's size does not say of it."""
    found = f"{machine.name} does not say whether the card has bfloat16, which is planned with; one older than Ampere "
    found += "(RTX 20xx, T4, V100, P100) computes in float16, which is untested with Qwen3"
    return Finding("warning", "compute dtype", found, "--gpu with the card's name, such as t4 or rtx3060")


def _session(config: Config, machine: Machine, seconds: dict[str, Any]) -> Finding:
    step = reached(config, seconds, COLAB_HOURS * 3600)
    found = (
        f"the run takes about {clock(seconds['run'])} on {machine.name}: a session of {COLAB_HOURS} hours, the most "
    )
    found += f"that free Colab gives, ends at step {step:,} of {config.steps:,} at best"
    mend = (
        "the run's folder on Drive (notebooks/03_train_qwen3.ipynb), and --resume in the next session: it goes on from "
    )
    mend += f"the last checkpoint, of every {config.save_every} steps"
    return Finding("warning", "session", found, mend, {"hours": COLAB_HOURS, "step": step})


def reached(config: Config, seconds: dict[str, Any], limit: float) -> int:
    """Returns how many steps are done `limit` seconds after a run's first evaluation began."""
    step, scoring = sum(seconds["step"].values()), seconds["evaluation"]
    left = max(0.0, limit - scoring)
    if not config.eval_every:
        return min(config.steps, int(left / step))
    rounds, rest = divmod(left, config.eval_every * step + scoring)
    return min(config.steps, int(rounds) * config.eval_every + min(config.eval_every, int(rest / step)))
