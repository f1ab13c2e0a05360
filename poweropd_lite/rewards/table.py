"""Every reward by its name, and what a run's objective asks for beside log p and log q of each micro-batch."""

from __future__ import annotations

from typing import Any

from poweropd_lite.rewards.paper import PAPER
from poweropd_lite.rewards.part import NEED_LOG_Q
from poweropd_lite.rewards.published import PUBLISHED
from poweropd_lite.rewards.reward import Reward
from poweropd_lite.rewards.whole import WHOLE

REWARDS = {**PAPER, **PUBLISHED, **WHOLE}


def _not_loaded(*_: Any, **__: Any) -> Any:
    raise AssertionError("a user's reward is called by the run that loaded it alone")


OWN = Reward(_not_loaded, bounded=False, range=(-40.0, 10.0))  # of a user's function, module:function


def reward_of(name: str) -> Reward:
    """Returns what is known of a reward: an entry of REWARDS, or OWN for module:function."""
    return OWN if ":" in name else REWARDS[name]


def reads_rows(objective: Any) -> bool:
    """Whether whole distributions of both models are read; of a Config, or the method's Objective."""
    return reward_of(objective.reward).pay is None or objective.baseline == "own"


def passes(config: Any) -> int:
    """How many forwards of the student an update makes, of which one has a gradient; of a Config."""
    entry = reward_of(config.reward)
    first = entry.of_step or bool({config.keep, config.weight} & NEED_LOG_Q)
    return 1 + first + ("log_ref" in entry.needs)
