"""The paper's rewards, and every other one by its name: rewards/ has the formulas, which need no torch to be named."""

from poweropd_lite.rewards.paper import clip, log_ratio, log_ratio_moments, power, tanh, zscore
from poweropd_lite.rewards.table import REWARDS, reward_of

__all__ = ["REWARDS", "clip", "log_ratio", "log_ratio_moments", "power", "reward_of", "tanh", "zscore"]
