"""An evaluation's results as tables: on screen, as a Markdown row, and two evaluations side by side. Text only."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poweropd_lite.base.intervals import NORMAL
from poweropd_lite.base.tables import aligned, number, percent, score_names

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
    n, paper, own = results["n"], results.get("paper"), is_own(results)
    shown, titles = _score if own else percent, score_names(n, own)
    measures, scale = ("avg", "best" if own else "pass"), 1 if own else 100
    official = any(f"official_avg@{n}" in b for b in results["benchmarks"].values())
    head = ["", "problems", *(f"{title} (95%)" for title in titles), "tokens", "truncated"]
    head += [] if own else ["no answer"]
    head += ["official Avg", "official Pass"] if official else []
    head += ["paper: Avg@8", "Pass@8", "tokens"] if paper else []
    lines = [head]
    for name, scores in _rows(results["benchmarks"], results["mean"]):
        line = [TITLES.get(name, name), f"{scores['problems']:,}" if "problems" in scores else ""]
        line += [f"{shown(scores[f'{m}@{n}'])} ({_interval(scores[f'{m}@{n}_interval'], scale)})" for m in measures]
        line += [f"{scores['length']:,.0f}", percent(scores["truncated"])]
        line += [] if own else [percent(scores["no_answer"])]
        line += [percent(scores.get(f"official_{m}@{n}")) for m in ("avg", "pass")] if official else []
        if paper:
            theirs = paper["mean"] if name == MEAN else paper["benchmarks"].get(name)
            if name == MEAN and set(paper["benchmarks"]) != set(results["benchmarks"]):
                theirs = None  # another mean
            three = ("avg@8", ".1f"), ("pass@8", ".1f"), ("length", ",.0f")
            line += [number(theirs and theirs[key], form) for key, form in three]
        lines.append(line)
    notes = [_own(results) if own else _passes(results, "pass", percent), *([near_line(near)] if near else [])]
    if paper:
        notes.append(f"paper: {paper['title']} (arXiv 2606.17199, Tables 2 and 3), full fine-tuning")
    undecided = sum(b["undecided"] for b in results["benchmarks"].values())
    if own and undecided:
        fault = next(b["fault"] for b in results["benchmarks"].values() if b["fault"])
        notes.append(f"{undecided:,} completions got no score, and count as 0; the first: {fault}")
    elif undecided:
        why = "refused, past a second, or past what sympy can do"
        notes.append(f"{undecided:,} answers could not be decided ({why}): they count as wrong")
    if parts := [TITLES.get(name, name) for name, b in results["benchmarks"].items() if not b["whole"]]:
        notes.append(f"not the whole set, so not to be compared: {', '.join(parts)}")
    return "\n".join([aligned(lines), *filter(None, notes)])


def near_line(near: dict[str, Any]) -> str:
    """Returns kl.json as a line."""
    kl, error, logprob = (number(near[key], ".3f") for key in ("kl", "kl_error", "teacher_logprob"))
    kept = "served" if near["bits"] is None else f"{near['bits']}-bit"
    of = f"{near['completions']} completions, {near['tokens']:,} tokens, at temperature 1"
    if near.get("length") is not None:  # a file of before has none
        of += f"; {near['length']:.0f} tokens each, {percent(near['stop_share'])} stop"
    return f"KL to {_short(near['teacher'])} ({kept}): {kl} ± {error} nats a token, its log p {logprob} ({of})"


def _short(model: str) -> str:
    return Path(model).name if Path(model).is_absolute() else model


def is_own(results: dict[str, Any]) -> bool:
    """Whether the scores of results.json are a user's function's."""
    return results.get("settings", {}).get("grader") is not None


def _score(value: float) -> str:
    return f"{value:.3f}"


def _passes(results: dict[str, Any], key: str, shown: Callable[[float], str]) -> str:
    mean = results["mean"] if len(results["benchmarks"]) > 1 else next(iter(results["benchmarks"].values()))
    ks = sorted(int(k.removeprefix(f"{key}@")) for k in mean if k.startswith(f"{key}@") and k[-1].isdigit())
    title = "Pass@k" if key == "pass" else "best of k"
    return f"{title} " + "  ".join(f"{k}: {shown(mean[f'{key}@{k}'])}" for k in ks)


def _own(results: dict[str, Any]) -> str:
    """What is said of a user's scores: whose they are, and what they are called where they are 0 and 1."""
    binary = all(b["binary"] for b in results["benchmarks"].values())
    alias = " (all scores are 0 or 1: the mean is Avg@n, the best Pass@k)" if binary else ""
    return f"{_passes(results, 'best', _score)}; scored by {results['grader']}{alias}"


def markdown(results: dict[str, Any]) -> str:
    """Returns the paper's kind of row, Avg@n / Pass@n / length a benchmark, with its header."""
    if not results["benchmarks"]:
        return f"{near_line(results['kl'])}\n"
    n, columns = results["n"], _rows(results["benchmarks"], results["mean"])
    best, scale = ("best", 1) if is_own(results) else ("pass", 100)
    title = results.get("title") or results["model"]
    head = ["model", *(TITLES.get(name, name) for name, _ in columns)]
    rows = [[title, *(_cell(s[f"avg@{n}"], s[f"{best}@{n}"], s["length"], scale) for _, s in columns)]]
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
    of = f"mean score / best of {n} (by {results['grader']})" if is_own(results) else f"Avg@{n} / Pass@{n}"
    return f"{of} / tokens\n\n{table}\n"


def _rows(benchmarks: dict[str, dict], mean: dict) -> list[tuple[str, dict]]:
    return [*benchmarks.items(), *([(MEAN, mean)] if len(benchmarks) > 1 else [])]


def _cell(avg: float, any_: float, length: float, scale: int) -> str:
    return f"{scale * avg:.2f} / {scale * any_:.2f} / {length:.0f}"


def comparison_table(compared: dict[str, Any]) -> str:
    """Returns two evaluations and their paired difference, in percentage points, or of a user's scores as they are."""
    own = compared["grader"] is not None
    shown, scale, form = (_score, 1, "+.3f") if own else (percent, 100, "+.1f")
    averages = "/".join(map(str, dict.fromkeys(compared["n"])))
    titles = ("mean score", f"best of {compared['k']}") if own else (f"Avg@{averages}", f"Pass@{compared['k']}")
    lines = [["", *(part for title in titles for part in (f"{title}: first", "second", "difference (95%)"))]]
    for name, row in _rows(compared["benchmarks"], compared["mean"]):
        line = [TITLES.get(name, name)]
        for m in (row["avg"], row["pass"]):
            low, high = (scale * x for x in m["interval"])
            difference = f"{scale * m['difference']:{form}} ({low:{form}} to {high:{form}})"
            line += [shown(m["first"]), shown(m["second"]), difference]
        lines.append(line)
    notes = [
        f"{'bits of the weights' if key == 'bits' else key} differs: {ours} and {theirs}"
        for key, (ours, theirs) in compared["differing"].items()
    ]
    if compared["runs"] == 2:
        notes.append("one training run each: what another seed would change is not in these intervals")
    if compared["left_out"]:
        notes.append(f"only in one of them, so left out: {', '.join(compared['left_out'])}")
    tables = [aligned(lines)] if compared["benchmarks"] else []
    if compared["kl"]:
        kl, error = (
            [math.nan if near[key] is None else near[key] for near in compared["kl"]] for key in ("kl", "kl_error")
        )
        text = f"KL to {_short(compared['kl'][0]['teacher'])}, nats a token, less is nearer: first {kl[0]:.3f} ± {error[0]:.3f}, "
        text += f"second {kl[1]:.3f} ± {error[1]:.3f} (± one standard error)"
        if (of_both := compared["kl_error"]) is not None:
            low, high = (kl[0] - kl[1] + sign * NORMAL * of_both for sign in (-1, 1))
            text += f", difference {kl[0] - kl[1]:+.3f} ({low:+.3f} to {high:+.3f}, 95%)"
        tables.append(text)
    return "\n".join([f"first  {compared['first']}", f"second {compared['second']}", *tables, *notes])


def _interval(bounds: tuple[float, float], scale: int) -> str:
    low, high = (scale * bound for bound in bounds)
    return f"{low:.1f}-{high:.1f}" if scale == 100 else f"{low:.3f} to {high:.3f}"
