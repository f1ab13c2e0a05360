"""May the teacher be 4-bit at this alpha? `python -m poweropd_lite.audit`, or `audit(load_config("bundled"))`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from poweropd_lite.base.config import Config
from poweropd_lite.rehearse.settings import AuditConfig

if TYPE_CHECKING:
    from poweropd_lite.rehearse.audit_report import AuditReport


def audit(config: Config, settings: AuditConfig | None = None, say: Callable[[str], None] = print) -> "AuditReport":
    """Returns the report of docs/audit.md and writes its folder; raises UserError, at a signal KeyboardInterrupt."""
    from poweropd_lite.rehearse.audit import AUDIT
    from poweropd_lite.rehearse.report import make_report

    return make_report(AUDIT, config, settings or AuditConfig(), say)
