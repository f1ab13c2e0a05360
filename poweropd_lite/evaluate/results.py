"""From the samples in an evaluation's folder to its results: grading, scores with intervals, two evaluations compared.

Needs no model: grading can be done again, with another grader or the released code's, on the samples that are there.
"""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import read_json
from poweropd_lite.evaluate.folder import SETTINGS, EvalFolder, read_samples, read_settings
from poweropd_lite.evaluate.near import read_near
from poweropd_lite.evaluate.sampling import Answer, Key, Verdicts, by_problem, right_counts, score
from poweropd_lite.evaluate.scores import avg_at, interval, macro_interval, paired_difference, pass_at
from poweropd_lite.grade import GRADER, Sample, Verdict, grade
from poweropd_lite.grade.custom import Grader, Scored
from poweropd_lite.grade.custom import score as score_all
from poweropd_lite.run.closeness import difference_error

CHUNK = 4096  # verdicts that are written down at once
_VERDICT = {field.name for kind in (Verdict, Scored) for field in fields(kind)}


def grade_folder(
    folder: EvalFolder,
    names: list[str],
    again: bool,
    official: bool,
    tick: Callable[[str, int, int], object],
    own: Grader | None = None,
) -> None:
    """Grades the samples that have no verdict of this grader yet, all of them if `again`, and writes the verdicts down.

    `own` is a user's function that scores them instead.

    Of the benchmarks `names`, which have all their samples; what `tick` raises ends it; what was decided is kept.
    """
    sources = read_settings(folder.path)["about"]["sources"]
    grader = GRADER if own is None else own.label
    for name in names:
        graded_as = BUNDLED if sources.get(name) == BUNDLED else name
        records = sorted(
            read_samples(folder.path, name), key=lambda r: (r["problem"], r["sample"])
        )  # they end in any order
        fresh = [r for r in records if again or r.get("grader") != grader or (official and "official" not in r)]
        for start in range(0, len(fresh), CHUNK):
            chunk = fresh[start : start + CHUNK]
            verdicts: Sequence[Verdict] | Sequence[Scored]
            if own is not None:
                verdicts = score_all(own, [(r["text"], json.dumps(r["row"])) for r in chunk], partial(tick, name))
            else:
                samples = [Sample(r["text"], r["gold"], graded_as, r["tolerance"]) for r in chunk]
                verdicts = grade(samples, official, partial(tick, name))
            for record, said in zip(chunk, map(asdict, verdicts), strict=True):
                for key in _VERDICT:  # another grader's
                    record.pop(key, None)
                record["grader"] = grader
                record |= {k: v for k, v in said.items() if k != "official" or official}
            folder.rewrite(name, records)


def complete_benchmarks(path: Path) -> list[str]:
    """Returns the benchmarks of an evaluation that have all their samples; raises UserError if none has."""
    settings = read_settings(path)
    done, counts = [], []
    if not settings["about"]["benchmarks"]:
        raise UserError(f"no answer was graded in {path}; evaluate problems that have answers: --benchmarks FILE")
    for name, about in settings["about"]["benchmarks"].items():
        wanted = {(i, k) for i in range(about["problems"]) for k in range(settings["settings"]["n"])}
        here = {(r["problem"], r["sample"]) for r in read_samples(path, name)}
        counts.append(f"{len(here & wanted):,} of {len(wanted):,} of {name}")
        if here == wanted:
            done.append(name)
    if not done:
        shares = ", ".join(counts)
        raise UserError(f"{path} is not finished: {shares} samples are there; type its command again, and it goes on")
    return done


def finished_benchmarks(path: Path) -> list[str]:
    """Returns complete_benchmarks', or none where the KL to a teacher is there to be shown alone."""
    try:
        return complete_benchmarks(path)
    except UserError:
        if read_near(path):
            return []
        raise


def results_of(path: Path, ks: list[int], names: list[str]) -> dict[str, Any]:
    """Returns an evaluation's results on the benchmarks `names`, as in results.json, from its graded samples.

    Scores are 0 to 1, or as a user's function has them: avg@n is their mean then, and best@n the mean of each problem's
    best. The mean weighs the benchmarks alike.
    """
    settings, about = (read_settings(path)[key] for key in ("settings", "about"))
    n: int = settings["n"]
    own = settings.get("grader") is not None
    top = "best" if own else "pass"
    benchmarks: dict[str, dict] = {}
    averages, passes = [], []
    for name in names:
        verdicts, answers = _read(path, name)
        count = about["benchmarks"][name]["problems"]
        scores, some = score(answers, verdicts, count, n), [k for k in ks if k < n]
        mean_scores, (best, *others) = by_problem(verdicts, count, n, [n, *some])
        averages.append(mean_scores)
        passes.append(best)
        benchmarks[name] = {
            "problems": count,
            "longest": about["benchmarks"][name]["longest"],
            "whole": about["whole"].get(name),
            **{key: of for key, of in about["benchmarks"][name].items() if key == "of"},  # whose held-out prompts
            f"avg@{n}": scores.avg,
            f"avg@{n}_interval": interval(averages[-1]),
            f"{top}@{n}": scores.any,
            f"{top}@{n}_interval": interval(passes[-1]),
            **{f"{top}@{k}": float(values.mean()) for k, values in zip(some, others, strict=True)},
            "length": scores.length,
            "truncated": 1.0 - scores.stop_share,
            **({"no_answer": 1.0 - scores.answer_share} if scores.answer_share is not None else {}),
            "undecided": scores.undecided,
        }
        found = list(verdicts.values())
        if own:
            faults = [v.fault for v in found if isinstance(v, Scored) and v.fault is not None]
            benchmarks[name]["fault"] = faults[0] if faults else None
            scores_given = [v.score for v in found if isinstance(v, Scored) and v.fault is None]
            benchmarks[name]["binary"] = bool(scores_given) and set(scores_given) <= {0.0, 1.0}
        elif all(isinstance(v, Verdict) and v.official is not None for v in found):
            theirs = right_counts(cast(dict[Key, Verdict], verdicts), count, official=True)
            benchmarks[name][f"official_avg@{n}"] = float(avg_at(theirs, n).mean())
            benchmarks[name][f"official_pass@{n}"] = float(pass_at(theirs, n, n).mean())
    mean: dict[str, Any] = {}
    if names:
        shared = [k for k in benchmarks[names[0]] if all(isinstance(b.get(k), float) for b in benchmarks.values())]
        mean = {key: float(np.mean([b[key] for b in benchmarks.values()])) for key in shared}
        mean |= {f"avg@{n}_interval": macro_interval(averages), f"{top}@{n}_interval": macro_interval(passes)}
    near = read_near(path)
    return {
        **{key: value for key, value in about.items() if key not in ("benchmarks", "whole")},
        "n": n,
        "ks": ks,
        "grader": settings["grader"] if own else GRADER,
        "settings": settings,
        "benchmarks": benchmarks,
        "mean": mean,
        **({"kl": {key: value for key, value in near.items() if key != "by_completion"}} if near else {}),
    }


def earlier_ks(path: Path) -> list[int]:
    """Returns the k of the Pass@k in an evaluation's results.json; none where there is none that can be read."""
    try:
        ks = read_json(path / "results.json")["ks"]
        return ks if all(isinstance(k, int) for k in ks) else []
    except (OSError, ValueError, KeyError, TypeError):  # it is made anew in any case
        return []


def _read(path: Path, name: str) -> tuple[Verdicts, dict[Key, Answer]]:
    verdicts: dict[Key, Any] = {}
    answers: dict[Key, Answer] = {}
    settings = read_settings(path)["settings"]
    own = f"{settings['grader']} {settings['grader_sha256'][:16]}" if settings.get("grader_sha256") else None
    for r in read_samples(path, name):
        if own is not None and r.get("grader", own) != own:
            raise UserError(f"{path}/{name}.jsonl has samples that another function scored; type --regrade {path}")
        if "correct" not in r and "score" not in r:
            raise UserError(f"{path}/{name}.jsonl has samples that are not graded; type --regrade {path}")
        key = (r["problem"], r["sample"])
        if "correct" in r:
            verdicts[key] = Verdict(r["correct"], r["answer"], r["undecided"], r.get("official"))
        else:
            verdicts[key] = Scored(r["score"], r["fault"])
        answers[key] = Answer(r["text"], r["tokens"], r["truncated"])
    return verdicts, answers


def evaluation_in(folder: str | Path) -> Path:
    """Returns the folder of an evaluation: `folder` itself, or of a run's evaluations that of the latest step."""
    path = Path(folder)
    if (path / SETTINGS).is_file():
        return path
    inside = [file.parent for file in path.glob(f"eval/*/{SETTINGS}")]
    if not inside:
        mend = "type the folder that an evaluation wrote to, or a run that was evaluated"
        first = f"evaluate it first: python -m poweropd_lite.evaluate --model {shlex.quote(str(folder))}"
        if not path.exists():
            of_model = "" if "/" in str(folder) else f"; of a model, {first} --problems-of RUN"
            raise UserError(f"there is no folder {folder}; {mend}{of_model}")
        mend = first if (path / "config.yaml").is_file() else mend
        raise UserError(f"{folder} holds no evaluation (no {SETTINGS}); {mend}")
    steps = [path.name.split("-")[0] for path in inside]
    latest = [str(path) for path, step in zip(inside, steps, strict=True) if step == max(steps)]
    if len(latest) > 1:
        raise UserError(
            f"{folder} was evaluated in several ways ({', '.join(sorted(latest))}); type one of these folders"
        )
    return Path(latest[0])


def compare(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Returns the paired difference (first - second) of Avg@n and Pass@k, on each benchmark of both and on all of them.

    k is the smaller n of the two, and Pass@k unbiased. Also in it: what settings differ, and what one of them lacks.
    And what both say of the KL to one teacher on the same prompts, if both were asked. Raises UserError if they have no
    benchmark in common, or other problems in it.
    """
    paths = [evaluation_in(folder) for folder in (first, second)]
    before, after = (read_settings(path)["settings"] for path in paths)
    near = [read_near(path) for path in paths]
    alike = [found and [found[key] for key in ("teacher", "bits", "hash")] for found in near]
    near = near if all(near) and alike[0] == alike[1] else []
    complete = [finished_benchmarks(path) for path in paths]
    common = [name for name in complete[0] if name in complete[1]]
    if not common and not near:
        if all(alike):
            what = " and ".join(f"the KL to {of[0]} in {of[1]} bits on prompts {of[2]}" for of in alike if of)
            raise UserError(f"{first} and {second} can't be compared: {what}; evaluate both on the same")
        finished = "; ".join(", ".join(names) or "nothing graded" for names in complete)
        raise UserError(f"{first} and {second} have no finished benchmark in common ({finished}); evaluate both on one")
    graders = [settings.get("grader") for settings in (before, after)]
    if common and graders[0] != graders[1]:
        by = " and ".join(f"{path} by {name or 'the maths grader'}" for path, name in zip(paths, graders, strict=True))
        raise UserError(
            f"{by} were scored in different ways; score both by one: --regrade FOLDER --grader NAME, or anew"
        )
    counts = [before["n"], after["n"]]
    rows: dict[str, dict] = {}
    shares: dict[str, list[list[np.ndarray]]] = {"avg": [[], []], "pass": [[], []]}
    for name in common:
        golds = [{r["problem"]: (r["question"], r["gold"]) for r in read_samples(path, name)} for path in paths]
        if golds[0] != golds[1]:
            sizes = " and ".join(f"{len(gold)} in {path}" for gold, path in zip(golds, paths, strict=True))
            raise UserError(
                f"{name} has other problems ({sizes}); evaluate both with the same --benchmarks and --problems"
            )
        for side, path in enumerate(paths):
            mean, (best,) = by_problem(_read(path, name)[0], len(golds[0]), counts[side], [min(counts)])
            shares["avg"][side].append(mean)
            shares["pass"][side].append(best)
        rows[name] = {measure: _difference(*([pair[-1]] for pair in shares[measure])) for measure in shares}
    differing = {key: [before.get(key), after.get(key)] for key in before | after if before.get(key) != after.get(key)}
    differing.pop("weights", None)
    return {
        "first": str(paths[0]),
        "second": str(paths[1]),
        "n": counts,
        "k": min(counts),
        "grader": graders[0],
        "benchmarks": rows,
        "mean": {measure: _difference(*shares[measure]) for measure in shares} if common else {},
        "kl": near,
        "kl_error": _kl_error(near),
        "differing": differing,
        "runs": sum((path.parent.parent / "config.yaml").is_file() for path in paths),  # RUN/eval/step_...
        "left_out": sorted(set(complete[0]) ^ set(complete[1])),
    }


def _kl_error(near: Sequence[dict[str, Any] | None]) -> float | None:
    """The standard error of the difference of two KLs, prompt by prompt; None where one of the two has none."""
    known = [of for of in near if of and of["kl_error"] is not None]
    if len(known) < 2:
        return None
    each = [of["by_completion"] for of in known if "by_completion" in of]
    if len(each) < 2 or len(each[0]) != len(each[1]):  # of an earlier version: as if the two were independent
        return math.hypot(*(of["kl_error"] for of in known))
    return difference_error(each[0], each[1])


def _difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, Any]:
    difference, bounds = paired_difference(ours, theirs)
    first, second = (float(np.mean([values.mean() for values in side])) for side in (ours, theirs))
    return {"first": first, "second": second, "difference": difference, "interval": bounds}
