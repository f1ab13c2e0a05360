"""An audit's report: its fields, the verdict on the config's own teacher and reward, and its tables."""

from typing import Any, Literal, TypedDict

from poweropd_lite.base.tables import aligned, number
from poweropd_lite.rehearse.report import Cells, Report, Verdict, every_number, table
from poweropd_lite.rehearse.settings import AuditConfig

Row = dict[str, Any]  # stats.reward_error, `reward`, `alpha`, `interval`, and `passes`: within both limits
FEW = 32  # rollouts below which a bootstrap says too little
ERRORS = (("mean", "mean", "+.1e"), *((f"{size} abs", f"{size}_abs", ".1e") for size in ("mean", "p95", "max")))
OTHERS = (("r", "correlation", ".3f"), ("off", "relative_error", ".3f"))


class Candidate(TypedDict):
    """What is compared: with the teacher in 32 bits, or with the student in float32."""

    model: Literal["teacher", "student"]
    bits: int
    log_prob_error: dict[str, float]
    rewards: dict[str, Row]  # by label


class AuditReport(Report):
    """What audit.json holds."""

    reference: dict[str, int]
    candidates: dict[str, Candidate]  # by name: 4-bit teacher, student bfloat16
    not_audited: dict[str, str]  # why not


def judge(report: AuditReport) -> Verdict:
    """Returns the verdict on the config's own teacher_bits and reward."""
    run, limits, rollouts = report["config"], report["settings"], report["rollouts"]
    name, missing = f"{run['teacher_bits']}-bit teacher", dict(report["not_audited"])
    if name in missing:
        sound, uncertain, found = False, False, missing.pop(name)
    else:
        row = report["candidates"][name]["rewards"][report["own"]]
        sound, found = row["passes"], _found(row, limits)
        deciding = zip(row["interval"].values(), (limits["max_flipped_mass"], limits["min_correlation"]), strict=True)
        uncertain = any(bounds is None or bounds[0] < limit < bounds[1] for bounds, limit in deciding)
    notes, why = [], "an interval has its limit inside or is not defined, so other rollouts might say otherwise"
    if rollouts < FEW:
        notes = [f"{rollouts} rollouts are too few to be sure of anything: type --rollouts {AuditConfig().rollouts}"]
    elif uncertain:
        notes = [f"{why}: type --rollouts {4 * rollouts}"]
    if missing:
        notes.append("not compared: " + ", ".join(f"{candidate} ({why})" for candidate, why in missing.items()))
    other = run["reward"] != "log_ratio" and report["own"] == "log_ratio"
    subject = f"{name} at {report['own']}" + f" ({run['reward']} is judged by log_ratio)" * other
    line = f"yes: {subject}: {found}" if sound else f"no: {subject}: {found}; {_instead(report)}"
    return {"sound": sound, "uncertain": uncertain or rollouts < FEW, "line": line, "note": "; ".join(notes)}


def _found(row: Row, limits: dict[str, Any]) -> str:
    """What was measured, against which limits, with digits enough to be told from them."""
    flipped, correlation, interval = row["flipped_mass"], row["correlation"], row["interval"]
    most, least = limits["max_flipped_mass"], limits["min_correlation"]
    if flipped is None:
        return "the reference pays no token anything, so there is nothing to keep the sign of"
    if correlation is None:
        return "the rewards of one of the two are the same for every token, so they correlate with nothing"
    share, r = ".2%" if abs(flipped - most) > 1e-4 else ".6%", ".3f" if abs(correlation - least) > 1e-3 else ".8f"
    return (
        f"{flipped:{share}} (95%: {_bounds(interval['flipped_mass'], '.2%')}) of the reward mass changes its sign, "
        f"limit {100 * most:g}%; correlation {correlation:{r}} (95%: {_bounds(interval['correlation'], '.3f')}), "
        f"at least {least:g}"
    )


def _bounds(interval: list[float] | None, form: str) -> str:
    return "none" if interval is None else " to ".join(number(bound, form) for bound in interval)


def _instead(report: AuditReport) -> str:
    """What to type: more bits at the same reward, or the nearest smaller alpha at the same bits."""
    bits, own = report["config"]["teacher_bits"], report["own"]
    rows = {c["bits"]: c["rewards"] for c in report["candidates"].values() if c["model"] == "teacher"}
    any_row = next(iter(report["candidates"].values()))["rewards"][own]
    more = [b for b in sorted(rows) if b > bits and rows[b][own]["passes"] and (b != 8 or report["device"] == "cuda")]
    if not more and bits < 32 and any_row["flipped_mass"] is not None and not report["reference"]["streamed_layers"]:
        more = [32]
    ways = [f"--teacher-bits {b} (if plan says that it fits)" for b in more[:1]]
    passing = [row["alpha"] for row in rows.get(bits, {}).values() if row["passes"] and row["alpha"] is not None]
    if alphas := [a for a in passing if any_row["alpha"] is None or a < any_row["alpha"]]:
        ways.append("--reward power " * (any_row["alpha"] is None) + f"--alpha {max(alphas):g}")
    other = "nothing that was tried passes: look at --max-flipped-mass and --min-correlation, or take more --rollouts"
    return f"type {', or '.join(ways)}" if ways else other


def screen(report: AuditReport) -> str:
    candidates, limits, parts = report["candidates"], report["settings"], []
    for name, candidate in candidates.items():
        rows = {label: row | {"fails": not row["passes"]} for label, row in candidate["rewards"].items()}
        columns = ((f"{name.removesuffix(' teacher')} flip", "flipped_mass", ".2%", "fails"), *OTHERS)
        parts.append(table("reward", rows, columns, report["own"]))
    errors = table("error of log-probs, nats", {n: c["log_prob_error"] for n, c in candidates.items()}, ERRORS)
    rewards = [[lines[0][0], *(cell for line in lines for cell in line[1:])] for lines in zip(*parts, strict=True)]
    legend = (
        "flip: share of the 32-bit teacher's reward mass that changes its sign (limit "
        f"{100 * limits['max_flipped_mass']:g}%); r: correlation of the rewards (at least "
        f"{limits['min_correlation']:g}); !: beyond a limit; off: sum |error| / sum |r|; *: the config's own"
    )
    return f"\n{aligned(errors)}\n\n{aligned(rewards)}\n{legend}\n"


def numbers(report: AuditReport) -> dict[str, Cells]:
    candidates = report["candidates"]
    errors = every_number("error of log-probs, nats", {n: c["log_prob_error"] for n, c in candidates.items()})
    return {"Log-probs": errors} | {n: every_number("reward", c["rewards"]) for n, c in candidates.items()}
