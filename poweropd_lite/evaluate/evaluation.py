"""One evaluation: what is missing is sampled, then graded, scored and written; and grading again without sampling.

Every sample is kept, so a killed evaluation goes on where it stopped.
"""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.files import write_json, write_text
from poweropd_lite.base.progress import Counting
from poweropd_lite.base.stop import Stopped, StopRequest, end_cell
from poweropd_lite.checks.machine import own_threads
from poweropd_lite.evaluate.agenda import Agenda, make_agenda
from poweropd_lite.evaluate.folder import EvalFolder, read_settings
from poweropd_lite.evaluate.near import is_there, measure_near
from poweropd_lite.evaluate.results import earlier_ks, evaluation_in, finished_benchmarks, grade_folder, results_of
from poweropd_lite.evaluate.sampling import as_answer, sample_answers
from poweropd_lite.evaluate.serve import serve_engine
from poweropd_lite.evaluate.settings import EvalConfig, load_eval_config
from poweropd_lite.evaluate.tables import markdown, screen_table
from poweropd_lite.method.logprobs import Sampling

_one_at_a_time = threading.Lock()  # transformers does not load two models at once
STOPPING = "stopping after this batch; started again, it goes on (once more to stop at once)"


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
            results = None if stop else grade_and_score(folder, config.ks, names, official, say, stop)
        if results is None:
            end_cell(stop.signal)
        return Evaluated(agenda.path, results, 0 if results else stop.signal)


def sample_missing(agenda: Agenda, folder: EvalFolder, stop: StopRequest, say: Callable[[str], None]) -> None:
    """Samples the batches that are not in the folder yet, until all are or a stop is asked for."""
    missing, total = [], sum(len(batch) for part in agenda.parts for batch in part.batches)
    for part in agenda.parts:
        here = folder.samples(part.name, part.batches)
        missing += [(part, batch) for batch in part.batches if batch[0] not in here]
    near = agenda.near if agenda.near and not is_there(agenda.near, folder.path) else None
    if not missing and near is None:
        say(f"every sample is in {agenda.path} already")
        return

    config, tokenizer, serving = agenda.config, agenda.vocabulary.tokenizer, agenda.serving
    how = f"{serving.engine.name} ({serving.engine.why}), {agenda.settings['dtype']}"
    for note in agenda.target.notes:
        say(note)
    say(f"{agenda.target.kind} {agenda.target.name}, {how}, into {agenda.path}")
    forbidden = torch.tensor(agenda.vocabulary.forbidden, dtype=torch.long, device=serving.device)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, forbidden)
    with closing(serve_engine(agenda.target, serving, agenda.vocabulary.stop_ids, say)) as engine:
        engine.sync()
        with Counting("answer", total, total - sum(len(batch) for _, batch in missing)) as counting:
            for part, batch in missing:
                if stop:
                    return
                prompts = part.problems.prompts
                rollouts = sample_answers(engine, prompts, batch, sampling, part.longest, serving.seed)
                records = []
                for (i, k), rollout in zip(batch, rollouts, strict=True):
                    p, prompt = prompts[i], tokenizer.decode(list(prompts[i].ids))
                    asked = {"question": p.question, "prompt": prompt, "gold": p.answer, "tolerance": p.tolerance}
                    records.append({"problem": i, "sample": k, **asked, **asdict(as_answer(rollout, tokenizer))})
                folder.append(part.name, records)
                counting.show(part.name, counting.done + len(batch), total)
            if near is not None:

                def tick(done: int) -> bool:
                    counting.show("KL to the teacher", done, len(near.prompts))
                    return not stop

                measure_near(near, engine, serving, folder.path, tick)


def grade_and_score(
    folder: EvalFolder, ks: list[int], names: list[str], official: bool, say: Callable[[str], None], stop: StopRequest
) -> dict[str, Any] | None:
    """Grades what is not graded yet, writes the results and says them; returns them, None if stopped.

    The table is of the benchmarks `names`; where there are none, of all that are finished, graded again from the start.
    """
    complete = finished_benchmarks(folder.path)
    with Counting("answer") as counting:

        def tick(name: str, done: int, total: int) -> None:
            stop.check()
            counting.show(f"grading {name}", done, total)

        try:
            grade_folder(folder, names or complete, not names, official, tick)
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
    folder: str | Path, official: bool = False, k: str | None = None, say: Callable[[str], None] = print
) -> Evaluated:
    """Grades the samples of an evaluation again and writes its results anew."""
    path = evaluation_in(folder)
    n, ks = read_settings(path)["settings"]["n"], earlier_ks(path) if k is None else []
    ks = ks or load_eval_config(model=str(path), n=n, k=k).ks
    with StopRequest("stopping; what is graded so far is kept") as stop, EvalFolder(path) as opened:
        results = grade_and_score(opened, ks, [], official, say, stop)
    if results is None:
        end_cell(stop.signal)
    return Evaluated(path, results, 0 if results else stop.signal)
