"""Which card holds which pair, as docs/plan.md shows it: 12 to 80 GB, four pairs, LoRA and every weight. No GPU needed.

    python benchmarks/plan_table.py

A few minutes on two cores. A cell says that the config fits as it is, with which flags it does, or that nothing helps.
"""

from poweropd_lite.base.config import load_config
from poweropd_lite.base.config_files import PAPER_PAIRS
from poweropd_lite.cli import as_flags
from poweropd_lite.plan import plan
from poweropd_lite.plan.cards import SIZES, find_card
from poweropd_lite.plan.settings import PlanConfig

GIB = 2**30


def cell(config, size: int) -> str:
    """Returns what a card of `size` GB says of a config."""
    report, fitting = plan(config, PlanConfig(gpu=str(size)), say=lambda _: None)
    if report["fits"]:
        return "fits"
    if fitting is None or fitting.full_finetune != config.full_finetune:
        return "-"
    return f"`{as_flags({name: after for name, (_, after) in report['changes'].items()})}`"


def main() -> None:
    """Prints the Markdown table."""
    print("| pair | trains | needs, GiB | " + " | ".join(f"{size} GB" for size in SIZES) + " |")
    print("|---|---|---|" + "---|" * len(SIZES))
    for full in (False, True):
        for name in PAPER_PAIRS:
            config = load_config(name, full_finetune=full)
            need = plan(config, PlanConfig(), say=print)[0]["needed_bytes"] / GIB
            fits = [find_card(str(size)).gib >= need for size in SIZES]
            cells = ["fits" if fit else cell(config, size) for size, fit in zip(SIZES, fits, strict=True)]
            row = [f"`{name}`", "every weight" if full else "LoRA", f"{need:.1f}", *cells]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
