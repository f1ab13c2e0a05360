"""One evaluation: what is missing is sampled, then graded, scored and written; and grading again without sampling.

Every sample is kept, so a killed evaluation goes on where it stopped.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json, write_text
from poweropd_lite.base.progress import Counting
from poweropd_lite.base.stop import LOADING, Stopped, StopRequest, end_cell, stopped_at_once
from poweropd_lite.checks.grader import check_grader
from poweropd_lite.checks.machine import own_threads
from poweropd_lite.evaluate.agenda import Agenda, Part, make_agenda
from poweropd_lite.evaluate.folder import SETTINGS, EvalFolder, read_samples, read_settings
from poweropd_lite.evaluate.near import is_there, measure_near
from poweropd_lite.evaluate.pace import seconds_left
from poweropd_lite.evaluate.results import earlier_ks, evaluation_in, finished_benchmarks, grade_folder, results_of
from poweropd_lite.evaluate.sampling import Key, as_answer, stream_answers
from poweropd_lite.evaluate.serve import serve_engine
from poweropd_lite.evaluate.settings import EvalConfig, load_eval_config
from poweropd_lite.evaluate.tables import markdown, screen_table
from poweropd_lite.grade.custom import Grader
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Engine

_one_at_a_time = threading.Lock()  # transformers does not load two models at once
STOPPING = "stopping; answers that have ended are kept (vLLM ends its batch first); started again, it goes on (once more to stop at once)"


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` returns: where its files are, and results.json (None if a signal stopped it)."""

    folder: Path
    results: dict[str, Any] | None
    signal: int = 0


def evaluate(config: EvalConfig, say: Callable[[str], None] = print) -> Evaluated:
    """Evaluates a model, or goes on with it; raises UserError for what can be mended, Stopped in Jupyter if stopped."""
    with _one_at_a_time, own_threads():
        agenda = make_agenda(config, say)
        with StopRequest(STOPPING) as stop, EvalFolder(agenda.path) as folder:
            folder.settle(agenda.settings, agenda.about)
            sample_missing(agenda, folder, stop, say)
            names, official = [part.name for part in agenda.parts], config.official_grading
            results = None if stop else grade_and_score(folder, config.ks, names, official, say, stop, agenda.grader)
        if results is None:
            end_cell(stop.signal)
        return Evaluated(agenda.path, results, 0 if results else stop.signal)


def sample_missing(agenda: Agenda, folder: EvalFolder, stop: StopRequest, say: Callable[[str], None]) -> None:
    """Samples what is not in the folder yet, until all is or a stop is asked for."""
    missing: dict[int, list[tuple[Part, Key]]] = {}  # by the most tokens that an answer gets
    for part in agenda.parts:
        here = folder.samples(part.name, set(part.keys))
        if asked := [(part, key) for key in part.keys if key not in here]:
            missing.setdefault(part.longest, []).extend(asked)
    count = sum(map(len, missing.values()))
    near = agenda.near if agenda.near and not is_there(agenda.near, folder.path) else None
    if not count and near is None:
        say(f"every sample is in {agenda.path} already")
        return

    serving = agenda.serving
    how = f"{serving.engine.name} ({serving.engine.why}), {agenda.settings['dtype']}"
    for note in agenda.target.notes:
        say(note)
    say(f"{agenda.target.kind} {agenda.target.name}, {how}, into {agenda.path}")
    if count:
        say(f"{count:,} answers of at most {max(missing):,} tokens, {min(count, serving.lines):,} at a time")
    with stopped_at_once(LOADING):
        engine = serve_engine(agenda.target, serving, agenda.vocabulary.stop_ids, say)
    with closing(engine):
        engine.sync()
        with Counting("answer", agenda.samples, agenda.samples - count) as counting:
            for longest, asked in missing.items():
                count -= len(asked)
                if not _sample(agenda, engine, asked, longest, folder, counting, count, stop):
                    return
            if near is not None:

                def tick(done: int) -> bool:
                    counting.show("KL to the teacher", done, len(near.prompts))
                    return not stop

                measure_near(near, engine, serving, folder.path, tick)


def _sample(
    agenda: Agenda, engine: Engine, asked: list[tuple[Part, Key]], longest: int, folder: EvalFolder, counting: Counting,
    behind: int, stop: StopRequest,
) -> bool:  # fmt: skip
    """Samples what is asked for, and writes each answer down as it ends; whether all is there, or a stop was asked for.

    `behind` it as many samples come as the ETA counts with.
    """
    config, tokenizer, serving = agenda.config, agenda.vocabulary.tokenizer, agenda.serving
    forbidden = torch.tensor(agenda.vocabulary.forbidden, dtype=torch.long, device=serving.device)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, forbidden)
    prompts, keys = [part.problems.prompts[i] for part, (i, _) in asked], [key for _, key in asked]
    name = asked[0][0].name if len({part.name for part, _ in asked}) == 1 else "all benchmarks"
    start, ended, most = time.monotonic(), 0, 0
    for told in stream_answers(engine, prompts, keys, sampling, longest, serving.seed, serving.lines):
        records: dict[str, list[dict]] = {}
        for at, rollout in told.rollouts:
            (part, (i, k)), p = asked[at], prompts[at]
            text = {"question": p.question, "prompt": tokenizer.decode(list(p.ids)), "gold": p.answer or ""}
            text |= {"row": json.loads(p.row)} if p.row is not None else {}
            rest = {"tolerance": p.tolerance, **asdict(as_answer(rollout, tokenizer))}
            records.setdefault(part.name, []).append({"problem": i, "sample": k, **text, **rest})
            most = max(most, len(rollout.completion_ids))
        for benchmark, found in records.items():
            folder.append(benchmark, found)
        ended += len(told.rollouts)
        left = seconds_left(told, time.monotonic() - start, ended, most, behind, serving.lines, longest)
        counting.show(name, counting.done + len(told.rollouts), agenda.samples, left)
        if stop:
            return False
    return True


def grade_and_score(
    folder: EvalFolder,
    ks: list[int],
    names: list[str],
    official: bool,
    say: Callable[[str], None],
    stop: StopRequest,
    grader: Grader | None = None,
) -> dict[str, Any] | None:
    """Grades what is not graded yet, writes the results and says them; returns them, None if stopped.

    With `grader`, a user's function, they are scored by it. The table is of the benchmarks `names`; where there are none, of all that are finished, graded again from the start.
    """
    complete = finished_benchmarks(folder.path)
    with Counting("answer") as counting:

        def tick(name: str, done: int, total: int) -> None:
            stop.check()
            counting.show(f"grading {name}", done, total)

        try:
            grade_folder(folder, names or complete, not names, official, tick, grader)
        except Stopped:
            return None
    results = results_of(folder.path, ks, names or complete) | {"graded": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_json(folder.path / "results.json", results)
    write_text(folder.path / "results.md", markdown(results))
    say(screen_table(results))
    if others := [name for name in complete if name not in results["benchmarks"]]:
        say(f"also there, but not asked for now: {', '.join(others)}")
    files = [f"{name}.jsonl" for name in results["benchmarks"]] + ["kl.json"] * ("kl" in results)
    say(f"files   {folder.path}: results.json  results.md  {'  '.join(files)}")
    return results


def regrade(
    folder: str | Path,
    official: bool = False,
    k: str | None = None,
    grader: str | None = None,
    say: Callable[[str], None] = print,
) -> Evaluated:
    """Grades the samples of an evaluation again and writes its results anew; by a user's function if it was, or is to be."""
    path = evaluation_in(folder)
    stands = read_settings(path)
    settings = stands["settings"]
    n, ks = settings["n"], earlier_ks(path) if k is None else []
    name = grader or settings.get("grader")
    ks_of = load_eval_config(model=str(path), n=n, k=k, grader=name, official_grading=official).ks
    own = check_grader(name, "--grader") if name else None
    ks = ks or ks_of
    with StopRequest("stopping; what is graded so far is kept") as stop, EvalFolder(path) as opened:
        if own and (own.name, own.sha256) != (settings.get("grader"), settings.get("grader_sha256")):
            if any("row" not in r for name in finished_benchmarks(path) for r in read_samples(path, name)):
                raise UserError(f"the samples of {path} have no rows for {own.name}; evaluate with --grader {own.name}")
            changes = {"grader": own.name, "grader_sha256": own.sha256}
            write_json(path / SETTINGS, {**stands, "settings": {**settings, **changes}})
        results = grade_and_score(opened, ks, [], official, say, stop, own)
    if results is None:
        end_cell(stop.signal)
    return Evaluated(path, results, 0 if results else stop.signal)
