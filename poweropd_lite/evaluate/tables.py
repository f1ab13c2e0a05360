"""An evaluation's results as tables: on screen, as a Markdown row, and two evaluations side by side. Text only."""

import math
from typing import Any

from poweropd_lite.base.tables import aligned, number, percent

MEAN = "mean"  # which no benchmark may be named
TITLES = {
    "gsm8k": "GSM8K", "math500": "MATH-500", "amc23": "AMC23", "aime24": "AIME24", "aime25": "AIME25",
    "minerva": "Minerva", "olympiadbench": "OlympiadBench",
}  # fmt: skip


def screen_table(results: dict[str, Any]) -> str:
    """Returns a table with a line a benchmark and one of their mean, and the paper's numbers where there are some."""
    near = results.get("kl")
    if not results["benchmarks"]:
        return near_line(results["kl"])
    n, paper = results["n"], results.get("paper")
    official = any(f"official_avg@{n}" in b for b in results["benchmarks"].values())
    head = ["", "problems", f"Avg@{n} (95%)", f"Pass@{n} (95%)", "tokens", "truncated", "no answer"]
    head += ["official Avg", "official Pass"] if official else []
    head += ["paper: Avg@8", "Pass@8", "tokens"] if paper else []
    lines = [head]
    for name, scores in _rows(results["benchmarks"], results["mean"]):
        line = [TITLES.get(name, name), f"{scores['problems']:,}" if "problems" in scores else ""]
        line += [f"{percent(scores[f'{m}@{n}'])} ({_interval(scores[f'{m}@{n}_interval'])})" for m in ("avg", "pass")]
        line += [f"{scores['length']:,.0f}", percent(scores["truncated"]), percent(scores["no_answer"])]
        line += [percent(scores.get(f"official_{m}@{n}")) for m in ("avg", "pass")] if official else []
        if paper:
            theirs = paper["mean"] if name == MEAN else paper["benchmarks"].get(name)
            if name == MEAN and set(paper["benchmarks"]) != set(results["benchmarks"]):
                theirs = None  # another mean
            three = ("avg@8", ".1f"), ("pass@8", ".1f"), ("length", ",.0f")
            line += [number(theirs and theirs[key], form) for key, form in three]
        lines.append(line)
    notes = [_passes(results), *([near_line(near)] if near else [])]
    if paper:
        notes.append(f"paper: {paper['title']} (arXiv 2606.17199, Tables 2 and 3), full fine-tuning")
    if undecided := sum(b["undecided"] for b in results["benchmarks"].values()):
        why = "refused, past a second, or past what sympy can do"
        notes.append(f"{undecided:,} answers could not be decided ({why}): they count as wrong")
    if parts := [TITLES.get(name, name) for name, b in results["benchmarks"].items() if not b["whole"]]:
        notes.append(f"not the whole set, so not to be compared: {', '.join(parts)}")
    return "\n".join([aligned(lines), *filter(None, notes)])


def near_line(near: dict[str, Any]) -> str:
    """Returns kl.json as a line."""
    kl, error, logprob = (number(near[key], ".3f") for key in ("kl", "kl_error", "teacher_logprob"))
    return f"KL to {near['teacher']} ({near['bits']}-bit): {kl} ± {error} nats a token, its log p {logprob} ({near['completions']} completions, {near['tokens']:,} tokens, at temperature 1)"


def _passes(results: dict[str, Any]) -> str:
    mean = results["mean"] if len(results["benchmarks"]) > 1 else next(iter(results["benchmarks"].values()))
    ks = sorted(int(key[5:]) for key in mean if key.startswith("pass@") and key[5:].isdigit())
    return "Pass@k " + "  ".join(f"{k}: {percent(mean[f'pass@{k}'])}" for k in ks)


def markdown(results: dict[str, Any]) -> str:
    """Returns the paper's kind of row, Avg@n / Pass@n / length a benchmark, with its header."""
    if not results["benchmarks"]:
        return f"{near_line(results['kl'])}\n"
    n, columns = results["n"], _rows(results["benchmarks"], results["mean"])
    title = results.get("title") or results["model"]
    head = ["model", *(TITLES.get(name, name) for name, _ in columns)]
    rows = [[title, *(_cell(s[f"avg@{n}"], s[f"pass@{n}"], s["length"], 100) for _, s in columns)]]
    if all(f"official_avg@{n}" in s for _, s in columns):
        cells = [_cell(s[f"official_avg@{n}"], s[f"official_pass@{n}"], s["length"], 100) for _, s in columns]
        rows.append([f"{title}, official grading", *cells])
    if paper := results.get("paper"):
        theirs = {**paper["benchmarks"], MEAN: paper["mean"]}
        if set(paper["benchmarks"]) != set(results["benchmarks"]):
            del theirs[MEAN]  # another mean
        found = [theirs.get(name) for name, _ in columns]
        cells = [_cell(t["avg@8"], t["pass@8"], t["length"], 1) if t else "-" for t in found]
        rows.append([f"paper: {paper['title']}", *cells])
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"Avg@{n} / Pass@{n} / tokens\n\n{table}\n"


def _rows(benchmarks: dict[str, dict], mean: dict) -> list[tuple[str, dict]]:
    return [*benchmarks.items(), *([(MEAN, mean)] if len(benchmarks) > 1 else [])]


def _cell(avg: float, any_: float, length: float, scale: int) -> str:
    return f"{scale * avg:.2f} / {scale * any_:.2f} / {length:.0f}"


def comparison_table(compared: dict[str, Any]) -> str:
    """Returns two evaluations and their paired difference, in percentage points."""
    averages = "/".join(map(str, dict.fromkeys(compared["n"])))
    head = ["", f"Avg@{averages}: first", "second", "difference (95%)"]
    lines = [[*head, f"Pass@{compared['k']}: first", "second", "difference (95%)"]]
    for name, row in _rows(compared["benchmarks"], compared["mean"]):
        line = [TITLES.get(name, name)]
        for m in (row["avg"], row["pass"]):
            low, high = (100 * x for x in m["interval"])
            difference = f"{100 * m['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
            line += [percent(m["first"]), percent(m["second"]), difference]
        lines.append(line)
    notes = [f"{key} differs: {ours} and {theirs}" for key, (ours, theirs) in compared["differing"].items()]
    if compared["left_out"]:
        notes.append(f"only in one of them, so left out: {', '.join(compared['left_out'])}")
    tables = [aligned(lines)] if compared["benchmarks"] else []
    if compared["kl"]:
        kl, error = (
            [math.nan if near[key] is None else near[key] for near in compared["kl"]] for key in ("kl", "kl_error")
        )
        tables.append(
            f"KL to {compared['kl'][0]['teacher']}, nats a token: first {kl[0]:.3f} ± {error[0]:.3f}, second {kl[1]:.3f} ± "
            f"{error[1]:.3f}, difference {kl[0] - kl[1]:+.3f} ± {math.hypot(*error):.3f}"
        )
    return "\n".join([f"first  {compared['first']}", f"second {compared['second']}", *tables, *notes])


def _interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}"
