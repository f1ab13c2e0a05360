"""An audit in words and tables: the verdict, what would pass, the screen's table and the Markdown one. Text only."""

from typing import Any

from poweropd_lite.base.tables import aligned, markdown_table, number, percent
from poweropd_lite.rehearse.settings import AuditConfig

FEW = 32  # rollouts below which a bootstrap says too little


def judge(report: dict[str, Any]) -> dict[str, Any]:
    """Returns the verdict on the config's own teacher_bits and reward, with its words as sentences."""
    name, reward = f"{report['teacher_bits']}-bit teacher", report["reward"]
    verdict: dict[str, Any] = {"candidate": name, "reward": reward, "sound": False, "uncertain": False}
    passing = {c: [r for r in rows["rewards"] if _passes(rows["rewards"][r], report)] for c, rows in _rows(report)}
    if name in report["not_audited"]:
        words = [f"no: {name} at {reward}: {report['not_audited'][name]}"]
    else:
        numbers = report["candidates"][name]["rewards"][reward]
        verdict |= {"sound": _passes(numbers, report), "uncertain": _uncertain(numbers, report)}
        verdict |= {key: numbers[key] for key in ("flipped_mass", "correlation", "interval")}
        words = [_sentence(name, reward, verdict, numbers, report)]
    if report["config"]["reward"] == "full_kl":
        words[0] += " (full_kl is judged by log_ratio)"
    if report["rollouts"] < FEW:
        verdict["uncertain"] = True
        words.append(
            f"{report['rollouts']} rollouts are too few to be sure of anything; type --rollouts {AuditConfig.model_fields['rollouts'].default}"
        )
    elif verdict["uncertain"]:
        words.append(
            f"an interval has its limit inside or is not defined, so other rollouts might say otherwise; type --rollouts {4 * report['rollouts']}"
        )
    words += [_would_pass(candidate, passing[candidate], report) for candidate in passing]
    words += [f"{candidate} was not compared: {why}" for candidate, why in report["not_audited"].items()]
    if report["device"] != "cuda" and "8-bit teacher" in passing:
        words.append("(8-bit: bitsandbytes' CPU arithmetic; training takes LLM.int8 on CUDA alone)")
    if not verdict["sound"]:
        words.append(_way_out(report, passing))
    return verdict | {"would_pass": passing, "words": words}


def screen(report: dict[str, Any]) -> str:
    """Returns what the command prints."""
    verdict, limits = report["verdict"], report["settings"]
    reference = f"{report['rollouts']} rollouts, {report['tokens']:,} tokens; against the teacher in 32 bits"
    if report["reference"]["streamed_layers"]:
        reference += f" ({report['reference']['streamed_layers']} layers streamed)"
    own = "* the config's own" if verdict["reward"] in _labels(report) else ""
    return "\n".join(
        [
            f"student {report['student']} <- teacher {report['teacher']}, on {report['device']} in {report['dtype']}",
            reference,
            "",
            aligned(_error_rows(report)),
            "",
            aligned(_reward_rows(report)),
            f"flip: share of the reference's reward mass that changes its sign (limit {100 * limits['max_flipped_mass']:g}%); "
            f"r: correlation of the rewards (at least {limits['min_correlation']:g}); off: sum |error| / sum |r|; {own}",
            "",
            *verdict["words"],
        ]
    )


def markdown(report: dict[str, Any]) -> str:
    """Returns the tables of every candidate with every number, as Markdown."""
    lines = [
        f"# Audit: student {report['student']}, teacher {report['teacher']}",
        "",
        f"{report['rollouts']} rollouts, {report['tokens']:,} tokens, on {report['device']} in {report['dtype']}. What each column is: docs/audit.md.",
        "",
        *(f"- {sentence}" for sentence in report["verdict"]["words"]),
        "",
        markdown_table(_error_rows(report)),
    ]
    head = ["reward", "flipped mass", "95%", "correlation", "95%", "flipped tokens", "vanished tokens", "vanished mass"]
    head += ["appeared tokens", "mean abs error", "sum abs error / sum abs r", "mean abs r"]
    for candidate, rows in _rows(report):
        body = [
            [
                reward,
                percent(n["flipped_mass"], 2),
                _interval(n["interval"]["flipped_mass"], lambda x: percent(x, 2)),
                number(n["correlation"], ".4f"),
                _interval(n["interval"]["correlation"], lambda x: number(x, ".4f")),
                percent(n["flipped_share"], 2),
                percent(n["vanished_share"], 2),
                percent(n["vanished_mass"], 2),
                percent(n["appeared_share"], 2),
                number(n["mean_abs_error"]),
                number(n["relative_error"]),
                number(n["mean_abs_reward"]),
            ]
            for reward, n in rows["rewards"].items()
        ]
        lines += [f"## {candidate}", "", markdown_table([head, *body])]
    return "\n".join(lines)


def _rows(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The candidates: teachers by their bits, then the student's half precision."""
    return sorted(report["candidates"].items(), key=lambda item: (item[0].startswith("student"), len(item[0]), item[0]))


def _labels(report: dict[str, Any]) -> list[str]:
    return list(next(iter(report["candidates"].values()))["rewards"])


def _passes(numbers: dict[str, Any], report: dict[str, Any]) -> bool:
    flipped, correlation, limits = numbers["flipped_mass"], numbers["correlation"], report["settings"]
    if flipped is None or correlation is None:
        return False
    return flipped <= limits["max_flipped_mass"] and correlation >= limits["min_correlation"]


def _uncertain(numbers: dict[str, Any], report: dict[str, Any]) -> bool:
    """Whether a 95% interval has its limit inside, or is not defined."""
    limits = report["settings"]
    pairs = (
        (numbers["interval"]["flipped_mass"], limits["max_flipped_mass"]),
        (numbers["interval"]["correlation"], limits["min_correlation"]),
    )
    return any(interval is None or interval[0] < limit < interval[1] for interval, limit in pairs)


def _sentence(name: str, reward: str, verdict: dict[str, Any], numbers: dict[str, Any], report: dict[str, Any]) -> str:
    limits = report["settings"]
    if numbers["flipped_mass"] is None:
        return f"no: at {reward} the reference pays no token anything, so there is nothing to keep the sign of"
    if numbers["correlation"] is None:
        return f"no: at {reward} the rewards of the reference or of the {name} are the same for every token, so they correlate with nothing"
    spread = _interval(numbers["interval"]["flipped_mass"], lambda x: percent(x, 2))
    between = _interval(numbers["interval"]["correlation"], lambda x: number(x, ".3f"))
    # Digits enough to be told from the limit.
    flipped = percent(
        numbers["flipped_mass"], 2 if abs(numbers["flipped_mass"] - limits["max_flipped_mass"]) > 1e-4 else 6
    )
    correlation = number(
        numbers["correlation"], ".3f" if abs(numbers["correlation"] - limits["min_correlation"]) > 1e-3 else ".8f"
    )
    return (
        f"{'yes' if verdict['sound'] else 'no'}: {name} at {reward}: {flipped} (95%: {spread}) of the "
        f"reward mass changes its sign, limit {100 * limits['max_flipped_mass']:g}%; correlation "
        f"{correlation} (95%: {between}), at least {limits['min_correlation']:g}"
    )


def _would_pass(candidate: str, passing: list[str], report: dict[str, Any]) -> str:
    labels = _labels(report)
    if passing == labels:
        return f"{candidate}: passes at every reward above"
    if not passing:
        return f"{candidate}: passes at none of them"
    return f"{candidate}: passes at {', '.join(passing)}; not at {', '.join(r for r in labels if r not in passing)}"


def _way_out(report: dict[str, Any], passing: dict[str, list[str]]) -> str:
    """What to type: more bits at the same reward, or the nearest smaller alpha at the same bits."""
    own, reward = report["teacher_bits"], report["reward"]
    runs_here = [b for b in (8, 16) if b > own and (b != 8 or report["device"] == "cuda")]
    ways = [f"--teacher-bits {b}" for b in runs_here if reward in passing.get(f"{b}-bit teacher", ())][:1]
    rows = next(iter(report["candidates"].values()))["rewards"]
    if (
        not ways
        and own < 32
        and rows[reward]["flipped_mass"] is not None
        and not report["reference"]["streamed_layers"]
    ):
        ways = ["--teacher-bits 32"]
    ways = [f"{way} (if plan says that it fits)" for way in ways]
    alphas = [float(r.split()[1]) for r in passing.get(f"{own}-bit teacher", ()) if r.startswith("power ")]
    if reward.startswith("power "):
        smaller = [a for a in alphas if a < float(reward.split()[1])]
        ways += [f"--alpha {max(smaller):g}"] if smaller else []
    elif alphas:
        ways.append(f"--reward power --alpha {max(alphas):g}")
    if not ways:
        return "nothing that was tried passes: look at the limits (--max-flipped-mass, --min-correlation), or take more --rollouts"
    return f"type {', or '.join(ways)}"


def _error_rows(report: dict[str, Any]) -> list[list[str]]:
    head = ["error of log-probs, nats", "mean", "mean abs", "p95 abs", "max abs"]
    body = [
        [name, *(f"{rows['log_prob_error'][key]:+.1e}" if key == "mean" else f"{rows['log_prob_error'][key]:.1e}" for key in ("mean", "mean_abs", "p95_abs", "max_abs"))]
        for name, rows in _rows(report)
    ]  # fmt: skip
    return [head, *body]


def _reward_rows(report: dict[str, Any]) -> list[list[str]]:
    candidates = _rows(report)
    short = [name.replace(" teacher", "").replace("student ", "student ") for name, _ in candidates]
    head = [
        "reward",
        *(f"{name} {column}" if column == "flip" else column for name in short for column in ("flip", "r", "off")),
    ]
    body = []
    for reward in _labels(report):
        line = [reward + (" *" if reward == report["reward"] else "")]
        for _, rows in candidates:
            n = rows["rewards"][reward]
            line += [percent(n["flipped_mass"], 2), number(n["correlation"], ".3f"), number(n["relative_error"], ".3f")]
        body.append(line)
    return [head, *body]


def _interval(bounds: list[float] | None, form) -> str:
    return "none" if bounds is None else f"{form(bounds[0])} to {form(bounds[1])}"
