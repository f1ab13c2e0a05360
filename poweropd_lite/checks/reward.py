"""The reward of a run tried on a grid of probabilities before anything loads: settings out of range, a user's function that fails."""

from collections.abc import Callable
from typing import Any

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError, cut
from poweropd_lite.grade.function import find_function
from poweropd_lite.rewards.reward import Reward
from poweropd_lite.rewards.table import reward_of

GRID = (-40.0, -5.0, -1.0, -0.1, -1e-4, 0.0)  # log-probs: 4e-18, 0.7%, 37%, 90%, 99.99%, 1


def reward_settings(config: Config) -> dict[str, float]:
    """Returns the settings that a config's reward is given, by name."""
    entry = reward_of(config.reward)
    return {name: getattr(config, name) for name in entry.settings} | entry.defaults | config.reward_settings


def check_reward(config: Config) -> Reward:
    """Returns the reward of a run, a user's function included.

    Raises UserError for one that can't be found, fails, or gives on the grid what is no finite number of the same shape, or
    what carries a gradient.
    """
    entry = reward_of(config.reward)
    if ":" in config.reward:
        entry = Reward(own_function(config.reward)[1], bounded=entry.bounded, range=entry.range)
    log_q, log_p = torch.tensor(GRID).repeat(len(GRID), 1).requires_grad_(), torch.tensor(GRID)[:, None]
    log_p = log_p.repeat(1, len(GRID)).requires_grad_()
    needed = {
        "mean": torch.zeros(()),
        "std": torch.ones(()),
        "log_ref": log_q.detach(),
        "noise": torch.rand(log_q.shape),
    }
    call = entry.pay or entry.compare
    if call is None:  # full_kl, which has no function of its own
        return entry
    try:
        found = call(log_p, log_q, **reward_settings(config), **{name: needed[name] for name in entry.needs})
    except Exception as error:
        settings = f" with {config.reward_settings}" if config.reward_settings else ""
        text = f"{type(error).__name__}: {cut(' '.join(str(error).split()))}"
        raise UserError(
            f"reward {config.reward} can't be paid{settings}: {text}; it is called as function(log_p, log_q, setting=...), "
            "with two tensors of one shape; mend it, or type other --reward-settings"
        ) from None
    if fault := _fault(found if entry.pay is not None else found[1].detach(), log_q):
        raise UserError(f"reward {config.reward}: {fault}; mend it, or type other --reward-settings")
    return entry


def own_function(name: str) -> tuple[str, Callable[..., Any]]:
    """Returns the SHA-256 of the file of module:function as it is now, and the function; raises UserError if there is none."""
    about, function = find_function(name, anew=True)
    if function is None:
        form = "module:function, such as my_rewards:pay for pay(log_p, log_q) of my_rewards.py in this folder"
        raise UserError(f"--reward {name}: {about['fault']}; run this where its file is, or type --reward with {form}")
    return about["sha256"], function


def _fault(found: object, like: torch.Tensor) -> str | None:
    """What is wrong with rewards on the grid, if anything."""
    if not isinstance(found, torch.Tensor) or found.shape != like.shape:
        what = (
            f"a tensor of shape {list(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        )
        return f"it gives {what} for log-probs of shape {list(like.shape)}, and is to give one number a token"
    if found.requires_grad:
        return "what it gives carries a gradient, and a reward is a constant to the loss: end it with .detach()"
    if not found.isfinite().all():
        row, column = (~found.isfinite()).nonzero()[0].tolist()
        at = f"log p {GRID[row]:g} and log q {GRID[column]:g}"
        return f"it gives {found[row, column].item()} at {at}, and a reward is a finite number"
    return None
