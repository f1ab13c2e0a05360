"""What the report knows of rewards by name."""

import math
from collections.abc import Callable, Sequence

from poweropd_lite.base.config import Config


def bound(config: Config) -> float | None:
    """Returns the size that a run's reward never exceeds; None for rewards without a bound."""
    return {"power": 1.0, "tanh": 1.0, "clip": config.clip_limit}.get(config.reward)


def has_alpha(reward: str) -> bool:
    """Whether a reward depends on alpha."""
    return reward == "power"


def formulas(alphas: Sequence[float]) -> dict[str, Callable[[float, float], float]]:
    """Returns the log ratio and the power rewards of `alphas`, as functions of the teacher's p and the student's q."""
    powers = {f"power {a:g}": lambda p, q, a=a: p**a - q**a for a in alphas}
    return {"log_ratio": lambda p, q: math.log(p) - math.log(q), **powers}
