"""Which alpha, which reward? `python -m poweropd_lite.advise`, or `advise(load_config("bundled"))`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from poweropd_lite.base.config import Config
from poweropd_lite.rehearse.settings import AdviseConfig

if TYPE_CHECKING:
    from poweropd_lite.rehearse.advise_report import Advice


def advise(config: Config, settings: AdviseConfig | None = None, say: Callable[[str], None] = print) -> "Advice":
    """Returns the report of docs/advise.md and writes its folder; raises UserError, at a signal KeyboardInterrupt."""
    from poweropd_lite.rehearse.advise import ADVISE
    from poweropd_lite.rehearse.report import make_report

    return make_report(ADVISE, config, settings or AdviseConfig(), say)
