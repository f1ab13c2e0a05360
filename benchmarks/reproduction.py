"""Hours, memory and cost of a whole reproduction on the cards people rent, as docs/reproduction.md shows it. No GPU needed.

    python benchmarks/reproduction.py
    python benchmarks/reproduction.py --cards l4,h100 --prices l4=0.56,h100=1.99 --configs qwen3-0.6b-4b

Computed, not measured: `plan`'s estimates, whose rates were found on one H100 (poweropd_lite/plan/cards.py) and are scaled by a card's
published figures. Training is the shipped config, its own evaluations counted, every rollout as long as it may be; an evaluation is of
the trained student alone, by the built-in loop. Prices are arguments: PRICES are round numbers to compute with, and nobody's offer.
About five minutes on two cores.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from poweropd_lite.base.config import load_config
from poweropd_lite.cli import as_flags
from poweropd_lite.models.shape import Shape, read_shape
from poweropd_lite.plan import plan
from poweropd_lite.plan.cards import BFLOAT16, CARDS, Card
from poweropd_lite.plan.scoring import plan_scoring
from poweropd_lite.plan.settings import PlanConfig

CONFIGS = "qwen3-0.6b-4b,qwen3-1.7b-8b,qwen3-0.6b-4b-full,qwen3-1.7b-8b-full"
PRICES = "l4=0.7,rtx4090=0.5,l40s=1,rtx6000-ada=1,a100-80gb=1.5,h100=2.5"  # dollars an hour: assumed
CHEAP = ("math500", 4)  # which benchmarks, and samples a problem
GIB = 2**30


@dataclass(frozen=True)
class Hours:
    """What a reproduction takes of a card."""

    training: float
    scoring: float  # all seven benchmarks, n = 8
    endless: float  # the same, if no answer ends before its longest
    cheap: float  # CHEAP


def hours(report: dict[str, Any], shape: Shape, card: Card, asked: PlanConfig) -> Hours:
    """Returns the hours of a plan's run and of evaluating its student, whose base has this `shape`."""
    lora = report["trained"] if report["trains"] != "every weight" else 0
    kernels = card.capability >= BFLOAT16
    cheap = plan_scoring(shape, lora, 16, card, asked.compute_share, asked.bandwidth_share, kernels, *CHEAP)
    seconds = report["seconds"]
    scoring = (seconds["benchmarks"][name] for name in ("seconds", "longest_seconds"))
    return Hours(*(s / 3600 for s in (seconds["run"], *scoring, cheap.seconds)))


def row(name: str, gpu: str, price: float) -> str:
    """Returns the line of a config on a card."""
    config, asked, card = load_config(name), PlanConfig(gpu=gpu), CARDS[gpu]
    report, fitting = plan(config, asked, lambda _: None)
    if fitting is None or fitting.full_finetune != config.full_finetune:
        return f"| `{name}` | {gpu} | {report['needed_bytes'] / GIB:.1f} of {card.gib} | does not fit | | | | | |"
    changes = {change: after for change, (_, after) in (report["changes"] or {}).items()}
    if changes:
        report, _ = plan(fitting, asked, lambda _: None)
    found = hours(report, read_shape(config.student, "student"), card, asked)
    run, whole = found.training + found.cheap, found.training + found.scoring
    cells = [
        f"`{name}`" + (f" `{as_flags(changes)}`" if changes else ""),
        gpu,
        f"{report['needed_bytes'] / GIB:.1f} of {card.gib}",
        f"{sum(report['seconds']['step'].values()):.1f}",
        f"{found.training:.1f}",
        f"{found.scoring:.1f} ({found.endless:.1f})",
        f"{found.cheap:.1f}",
        f"{whole:.1f}: ${whole * price:.0f}",
        f"{run:.1f}: ${run * price:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def prices(text: str) -> dict[str, float]:
    """Returns the price of each card of `name=dollars,...`; raises SystemExit for what is neither."""
    pairs = (part.partition("=") for part in text.split(","))
    try:
        return {name.strip(): float(price) for name, _, price in pairs}
    except ValueError:
        raise SystemExit(f"--prices: found {text!r}; type it as {PRICES}") from None


def main() -> None:
    """Prints the Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=CONFIGS)
    parser.add_argument("--cards", help=f"of {', '.join(CARDS)}; those of --prices, if not given")
    parser.add_argument("--prices", default=PRICES, help="dollars an hour, by card; assumed, if not given")
    args = parser.parse_args()
    costs = prices(args.prices)
    cards = args.cards.split(",") if args.cards else list(costs)
    if unknown := [name for name in (*costs, *cards) if name not in CARDS or name not in costs]:
        raise SystemExit(f"found {', '.join(unknown)}: a card wants a name of {', '.join(CARDS)}, and a price")
    print(
        "computed, not measured; dollars an hour " + ("assumed" if args.prices == PRICES else "as given") + ": ", end=""
    )
    print(", ".join(f"{name} {costs[name]:g}" for name in cards), end="\n\n")
    heads = ["config", "card", "GiB", "s a step", "training, h", "all seven, n = 8, h", "{} n = {}, h".format(*CHEAP)]
    heads += ["training + all seven, h", f"training + {CHEAP[0]}, h"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name in args.configs.split(","):
        for gpu in cards:
            print(row(name, gpu, costs[gpu]), flush=True)


if __name__ == "__main__":
    main()
