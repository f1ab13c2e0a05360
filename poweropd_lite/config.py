"""A run's settings: `load_config("bundled", alpha=5)`. (All of it is in base/config.py.)"""

from poweropd_lite.base.config import BUNDLED, Config, load_config

__all__ = ["BUNDLED", "Config", "load_config"]
