"""Does a run fit, and how long will it take? `python -m poweropd_lite.plan`, or `plan(load_config("qwen3-0.6b-4b"))`.

From model configs alone. Read in this order: trace.py (the real program on tensors without memory), memory.py (what is
alive in each phase), flops.py and cards.py (work, machines and time), parallel.py (several cards), fit.py (the smallest
change that fits), warn.py (what to beware of), report.py (what is said), make.py (the plan itself), pairs.py (which of the
paper's pairs a card holds).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poweropd_lite.plan.make import plan

__all__ = ["plan"]


def __getattr__(name: str) -> Any:
    if name != "plan":
        raise AttributeError(name)
    from poweropd_lite.plan.make import plan

    return plan
