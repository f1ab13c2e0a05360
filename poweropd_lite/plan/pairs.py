"""Which of the paper's pairs a card holds: each one's plan in a row of a table, one of them recommended."""

from collections.abc import Callable, Iterable
from typing import Any

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.base.config_files import PAPER_PAIRS
from poweropd_lite.base.errors import Finding
from poweropd_lite.base.progress import clock
from poweropd_lite.base.tables import aligned
from poweropd_lite.cli import as_flags
from poweropd_lite.plan.make import plan
from poweropd_lite.plan.memory import GIB
from poweropd_lite.plan.parallel import head_words, program
from poweropd_lite.plan.settings import PlanConfig


def plan_pairs(
    flags: dict[str, Any], asked: PlanConfig, say: Callable[[str], None] = print, names: Iterable[str] = PAPER_PAIRS
) -> tuple[dict[str, Any], Config | None]:
    """Returns the plans of shipped configs, with `flags` on top of each, on one card, and the recommended one's config.

    The recommended pair is the largest that fits as it is, or where none does the smallest that fits with a change: what
    is cut to fit runs in more, smaller parts, and so slower. Raises UserError as `plan` does.
    """
    pairs: list[dict[str, Any]] = []
    fitting: dict[str, Config] = {}
    for name in names:
        config = load_config(name, **flags)
        found, fits = plan(config, asked, say)
        after = found
        if fits is not None:
            fitting[name] = fits
            after = plan(fits, asked, lambda _: None)[0]  # of traces that were made: its time is another
        pairs.append(
            {"config": name, "steps": config.steps, "changes": found["changes"], "plan": found, "changed": after}
        )
    whole = [pair["config"] for pair in pairs if pair["plan"]["fits"]]
    best = whole[-1] if whole else next(iter(fitting), None)
    out: dict[str, Any] = {key: pairs[0]["plan"][key] for key in ("machine", "usable_bytes", "gpus")}
    out |= {"pairs": pairs, "recommended": best, "train": None, "write": None}
    if best is not None:
        changes = next(pair["changes"] for pair in pairs if pair["config"] == best)
        own = {"config": best, **flags}
        out["train"] = f"{program(asked.gpus)} -m poweropd_lite.train {as_flags(own | _values(changes))}"
        if asked.output is None:
            of_plan = {**asked.model_dump(exclude_unset=True), "output": "mine.yaml"}
            out["write"] = f"python -m poweropd_lite.plan {as_flags(own | of_plan)}"
    return out, fitting[best] if best else None


def table(r: dict[str, Any]) -> str:
    """Returns the plans as they are shown on a screen."""
    texts = [_how(pair["changes"]) for pair in r["pairs"]]
    width = max(map(len, (*texts, "fits")))
    timed = r["pairs"][0]["plan"]["seconds"] is not None
    rows = [["config", "needs GiB", "fits".ljust(width), "then GiB", *(["a step", "the run"] if timed else [])]]
    for pair, text in zip(r["pairs"], texts, strict=True):
        then = f"{pair['changed']['needed_bytes'] / GIB:.1f}" if pair["changes"] is not None else "-"
        needs = f"{pair['plan']['needed_bytes'] / GIB:.1f}"
        rows.append([pair["config"], needs, text.ljust(width), then, *(_times(pair) if timed else ())])
    lines = [f"{r['machine']}: {r['usable_bytes'] / GIB:.1f} GiB can be used"]
    if r["gpus"]:
        lines.append(head_words(r["gpus"]))
    lines += ["", aligned(rows), ""]
    name = r["recommended"]
    if name is None:
        return "\n".join([*lines, "none of them fits, whatever is changed; take a larger card"])
    chosen = next(pair for pair in r["pairs"] if pair["config"] == name)
    why = "none fits as it is, and this one is cut least" if chosen["changes"] else "the largest that fits as it is"
    lines.append(f"take    {name}: {why}")
    if seconds := chosen["changed"]["seconds"]:
        lines.append(f"        the run: {chosen['steps']:,} steps and {seconds['evaluations']} evaluations")
        lines.append(
            "        times are estimates, not measured: {compute_share:.0%} of {tflops:g} TFLOP/s and {bandwidth_share:.0%} "
            "of {bandwidth:,g} GB/s; take them for lower bounds".format(**seconds["assumed"], **seconds["card"])
        )
    else:
        lines.append("        how long it takes is not known of it: --gpu with a card's name, such as rtx3060, says")
    for warning in chosen["changed"]["warnings"]:
        lines += Finding(**warning).shown()
    lines.append(f"next    {r['train']}")
    if r["write"]:
        lines.append(f"        or, as a config of yours: {r['write']}")
    return "\n".join(lines)


def _how(changes: dict[str, list[Any]] | None) -> str:
    if changes is None:
        return "does not fit"
    return f"with {as_flags(_values(changes))}" if changes else "as it is"


def _values(changes: dict[str, list[Any]]) -> dict[str, Any]:
    """What the changed settings are then."""
    return {name: after for name, (_, after) in changes.items()}


def _times(pair: dict[str, Any]) -> tuple[str, str]:
    if pair["changes"] is None:
        return "-", "-"
    seconds = pair["changed"]["seconds"]
    return f"{sum(seconds['step'].values()):.1f} s", clock(seconds["run"])
