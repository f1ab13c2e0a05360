"""Scores a model on maths benchmarks: `python -m poweropd_lite.evaluate --model runs/power10-seed0`.

Samples n answers a problem, grades them, and prints Avg@n and Pass@n with intervals, beside the paper's own numbers where
the paper has such a run. Every sample is kept; started again, it goes on where it stopped. `--compare A B` pairs two
evaluations, `--regrade DIR` grades without sampling again. From Python: `evaluate(load_eval_config(model=...))`.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.config import BUNDLED, EvalConfig, load_eval_config
from poweropd_lite.errors import UserError, run_command
from poweropd_lite.flags import config_parser, given
from poweropd_lite.interrupt import StopRequest

if TYPE_CHECKING:
    from poweropd_lite.benchmarks import Problems
    from poweropd_lite.eval_folder import EvalFolder
    from poweropd_lite.evaluation import Key
    from poweropd_lite.target import Target, Vocabulary

BATCH = {"vllm": 512, "cuda": 64, "cpu": 256}  # answers at once: vLLM's, the built-in loop's on either device


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` returns: where its files are, and results.json (None if a signal stopped it)."""

    folder: Path
    results: dict[str, Any] | None
    signal: int = 0


@dataclass(frozen=True)
class _PromptSettings:
    prompt_suffix: str
    system_prompt: str
    enable_thinking: bool
    max_prompt_tokens: int


@dataclass(frozen=True)
class _Set:
    """A benchmark to be sampled: its problems, the most tokens an answer gets, and the batches."""

    problems: "Problems"
    longest: int
    batches: "list[list[Key]]"


def evaluate(config: EvalConfig, say: Callable[[str], None] = print) -> Evaluated:
    """Evaluates a model, or goes on with it; raises UserError for what the user can mend."""
    from poweropd_lite.benchmarks import ALL, find_benchmarks, load_problems
    from poweropd_lite.target import find_target, fingerprint, load_vocabulary

    benchmarks = find_benchmarks(config.benchmarks, config.benchmark_folder) if config.benchmarks else None
    target = find_target(config)
    import torch
    import transformers

    from poweropd_lite.backends import choose_engine, hush_bitsandbytes
    from poweropd_lite.models import model_path
    from poweropd_lite.session import compute_dtype
    from poweropd_lite.target import engine_config

    hush_bitsandbytes()
    transformers.utils.logging.disable_progress_bar()
    bundled = target.base in (model_path(BUNDLED, "student"), model_path(BUNDLED, "teacher"))
    # One thread is the faster at the bundled pair's size.
    threads = config.threads if config.threads is not None else int(bundled)
    if threads:
        torch.set_num_threads(threads)
    if benchmarks is None:
        small = bundled or not torch.cuda.is_available()
        names = BUNDLED if small else ",".join(ALL)
        say(f"benchmarks: {names} (--benchmarks takes others)")
        benchmarks = find_benchmarks(names, config.benchmark_folder)
    vocabulary = load_vocabulary(target, config)
    asking = _prompt_settings(config, target, vocabulary.positions)
    columns = (config.prompt_column, config.answer_column)
    sets = [load_problems(b, vocabulary.tokenizer, asking, config.problems, columns, say) for b in benchmarks]

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    longest = {s.benchmark.name: _longest(s, config, vocabulary, say) for s in sets}
    room = max(max(len(p.ids) for p in s.prompts) + longest[s.benchmark.name] for s in sets)
    settings = engine_config(target, config, room, max(longest.values()))
    dtype = compute_dtype(settings, device)
    choice = choose_engine(settings, device, "peft", training=False)
    size = config.batch_size or BATCH["vllm" if choice.name == "vllm" else device.type]
    settings = settings.model_copy(update={"engine": choice.name, "batch_size": size, "eval_batch_size": size})

    from poweropd_lite.eval_folder import EvalFolder, free_folder, problems_record
    from poweropd_lite.eval_results import grade_folder, write_results
    from poweropd_lite.eval_tables import markdown, screen_table
    from poweropd_lite.evaluation import batches

    wanted = {
        "weights": fingerprint(target, config, say),
        "n": config.n,
        **{key: getattr(config, key) for key in ("temperature", "top_k", "top_p", "seed")},
        "max_new_tokens": config.max_new_tokens,
        **asdict(asking),
        "stop_tokens": vocabulary.tokenizer.convert_ids_to_tokens(sorted(vocabulary.stop_ids)),
        "engine": choice.name,
        "dtype": str(dtype).removeprefix("torch."),
        "bits": settings.student_bits,
        "batch_size": size,
    }
    problems = {s.benchmark.name: problems_record(s.prompts, longest[s.benchmark.name]) for s in sets}
    path = _output(config, target, lambda parent, name: free_folder(parent, name, wanted, problems))
    plan = [_Set(s, longest[s.benchmark.name], batches(s.prompts, range(config.n), size)) for s in sets]
    notice = "stopping after this batch; started again, it goes on (once more to stop at once)"
    with StopRequest(notice) as stop, EvalFolder(path) as folder:
        folder.settle(wanted, _about(target, sets), problems)
        missing = _missing(folder, plan)
        if missing:
            say(f"{target.kind} {target.name}, {choice.name} ({choice.why}), {wanted['dtype']}, into {path}")
            total = sum(len(s.problems.prompts) * config.n for s in plan)
            _sample(folder, missing, total, target, settings, vocabulary, config, (device, dtype), stop, say)
        else:
            say(f"every sample is in {path} already")
        if stop:
            return Evaluated(path, None, stop.signal)
        with _Bar("grading") as bar:
            grade_folder(folder, False, config.official_grading, bar.update)
        results = write_results(path, config.ks, markdown)
    say(screen_table(results))
    say(f"files   {path}: results.json  results.md  " + "  ".join(f"{name}.jsonl" for name in results["benchmarks"]))
    return Evaluated(path, results)


def regrade(folder: str, official: bool, k: str | None, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Grades the samples of an evaluation again and writes its results anew; returns them."""
    from poweropd_lite.eval_folder import EvalFolder, read_settings
    from poweropd_lite.eval_results import evaluation_in, grade_folder, write_results
    from poweropd_lite.eval_tables import markdown, screen_table

    path = evaluation_in(folder)
    ks = load_eval_config(model="bundled", n=read_settings(path)["settings"]["n"], k=k).ks
    with EvalFolder(path) as opened:
        with _Bar("grading") as bar:
            grade_folder(opened, True, official, bar.update)
        results = write_results(path, ks, markdown)
    say(screen_table(results))
    return results


def _prompt_settings(config: EvalConfig, target: "Target", positions: int | None) -> _PromptSettings:
    def pick(name: str, otherwise: Any) -> Any:
        asked = getattr(config, name)
        return asked if asked is not None else getattr(target.run, name) if target.run else otherwise

    longest = config.max_prompt_tokens
    if positions is not None:  # a longer prompt would leave no room for an answer: it is left out, and counted
        longest = min(longest, max(1, positions - min(config.max_new_tokens or positions, positions // 2)))
    return _PromptSettings(
        pick("prompt_suffix", ""), pick("system_prompt", ""), pick("enable_thinking", False), longest
    )


def _longest(problems: "Problems", config: EvalConfig, vocabulary: "Vocabulary", say: Callable[[str], None]) -> int:
    """The most new tokens of an answer: as asked, and never more than the model has positions for."""
    benchmark, asked = problems.benchmark, config.max_new_tokens
    prompt = max(len(p.ids) for p in problems.prompts)
    longest = asked or benchmark.longest
    if vocabulary.positions is None or prompt + longest <= vocabulary.positions:
        return longest
    room = vocabulary.positions - prompt
    if asked is not None:
        raise UserError(
            f"an answer to {benchmark.name} may take {prompt} prompt and {longest} new tokens, but the model has "
            f"{vocabulary.positions} positions; type --max-new-tokens {room}"
        )
    say(
        f"{benchmark.name}: answers of at most {room} tokens, not {longest}: the model has {vocabulary.positions} positions"
    )
    return room


def _about(target: "Target", sets: "Sequence[Problems]") -> dict[str, Any]:
    """What is good to know of a result, but does not change a sample."""
    import platform

    import poweropd_lite
    from poweropd_lite.backends import installed
    from poweropd_lite.paper import paper_row

    packages = ("torch", "transformers", "peft", "vllm", "math-verify")
    run = target.run
    row = paper_row(run) if run else None
    reward = run and (f"power {run.alpha:g}" if run.reward == "power" else run.reward)
    return {
        "model": target.name,
        "kind": target.kind,
        "base": target.base,
        "title": f"{run.student} <- {run.teacher}, {reward}" if run else target.name,
        "whole": {s.benchmark.name: s.whole for s in sets},
        "sources": {s.benchmark.name: s.benchmark.source.data for s in sets},
        "paper": asdict(row) if row else None,
        "versions": {
            "poweropd_lite": poweropd_lite.__version__,
            "python": platform.python_version(),
            **{name: version for name in packages if (version := installed(name))},
        },
    }


def _output(config: EvalConfig, target: "Target", free: Callable[[Path, str], Path]) -> Path:
    if config.output is not None:
        path = Path(config.output)
        if path.is_file():
            raise UserError(f"{path} is a file; type --output with the name of a folder")
        strange = path.is_dir() and not (path / "settings.json").exists()
        if strange and any(not file.name.startswith(".") for file in path.iterdir()):
            raise UserError(f"{path} is not empty and holds no evaluation; type --output with the name of a new folder")
        return path
    if target.run_folder is not None:
        import json

        summary = target.run_folder / "summary.json"
        steps = json.loads(summary.read_text())["steps"] if summary.is_file() else None
        return free(target.run_folder / "eval", f"step_{steps:06}" if steps is not None else "final")
    return free(Path("evaluations"), Path(target.name).name)


def _missing(folder: "EvalFolder", plan: Sequence[_Set]) -> "list[tuple[_Set, list[list[Key]]]]":
    missing = []
    for each in plan:
        here = folder.samples(each.problems.benchmark.name, each.batches)
        left = [batch for batch in each.batches if batch[0] not in here]
        if left:
            missing.append((each, left))
    return missing


def _sample(folder, missing, total, target, settings, vocabulary, config, place, stop, say) -> None:
    import torch

    from poweropd_lite.backends import serve_engine
    from poweropd_lite.evaluation import as_answer, sample_answers
    from poweropd_lite.logprobs import Sampling

    device, dtype = place
    forbidden = torch.tensor(vocabulary.forbidden, dtype=torch.long, device=device)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, forbidden)
    left = sum(len(batch) for _, batches in missing for batch in batches)
    with closing(serve_engine(target, settings, device, dtype, vocabulary.stop_ids, say)) as engine:
        engine.sync()
        with _Bar("answers", total, total - left) as bar:
            for each, batches in missing:
                problems, name = each.problems.prompts, each.problems.benchmark.name
                for batch in batches:
                    if stop:
                        return
                    rollouts = sample_answers(engine, problems, batch, sampling, each.longest, config.seed)
                    records = []
                    for (i, k), rollout in zip(batch, rollouts, strict=True):
                        p, answer = problems[i], asdict(as_answer(rollout, vocabulary.tokenizer))
                        prompt = vocabulary.tokenizer.decode(list(p.ids))
                        asked = {"question": p.question, "prompt": prompt, "gold": p.answer, "tolerance": p.tolerance}
                        records.append({"problem": i, "sample": k, **asked, **answer})
                    folder.append(name, records)
                    bar.advance(len(batch), name)


class _Bar:
    """Progress with an ETA: a bar on a terminal, a line every now and then elsewhere."""

    def __init__(self, word: str, total: int | None = None, done: int = 0) -> None:
        import sys

        from tqdm.auto import tqdm

        self.live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar = tqdm(total=total, initial=done, desc=word, unit="answer", disable=not self.live, dynamic_ncols=True)
        self.word, self.total, self.done, self.start, self.first = word, total, done, time.monotonic(), done
        self.said = time.monotonic()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, count: int, name: str) -> None:
        """Counts `count` more."""
        self.done += count
        self.bar.set_description(name, refresh=False)
        self.bar.update(count)
        self._line(name)

    def update(self, name: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are done."""
        self.bar.total, self.bar.n, self.total, self.done = total, done, total, done
        self.bar.set_description(f"{self.word} {name}", refresh=False)
        self.bar.refresh()
        self._line(f"{self.word} {name}")

    def _line(self, name: str) -> None:
        from poweropd_lite.metrics import clock

        now = time.monotonic()
        if self.live or (now - self.said < 15 and self.done < (self.total or 0)):
            return
        self.said = now
        rate = (self.done - self.first) / max(now - self.start, 1e-9)
        eta = f"  ETA {clock((self.total - self.done) / rate)}" if rate and self.total else ""
        print(f"{name}  {self.done:,}/{self.total:,}{eta}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input, 130 or 143 stopped by a signal."""
    parser = config_parser("python -m poweropd_lite.evaluate", __doc__.splitlines()[0], EvalConfig)
    more = parser.add_argument_group("without sampling")
    more.add_argument("--compare", nargs=2, metavar=("A", "B"), help="pair two evaluations (or evaluated runs): A - B")
    more.add_argument("--regrade", metavar="DIR", help="grade the samples of an evaluation again")
    args = parser.parse(argv)
    flags = given(args, EvalConfig)
    if args.compare and args.regrade:
        raise UserError("--compare and --regrade are two different things to do; leave one out")
    if args.compare or args.regrade:
        name, takes = ("--compare", set()) if args.compare else ("--regrade", {"official_grading", "k"})
        if others := sorted(set(flags) - takes):
            others = ", ".join("--" + other.replace("_", "-") for other in others)
            raise UserError(f"{name} samples nothing, so {others} means nothing there; leave it out")
    if args.compare:
        from poweropd_lite.eval_results import compare
        from poweropd_lite.eval_tables import comparison_table

        print(comparison_table(compare(*args.compare)))
        return 0
    if args.regrade:
        regrade(args.regrade, bool(flags.get("official_grading")), flags.get("k"))
        return 0
    done = evaluate(load_eval_config(**flags))
    return 0 if done.results is not None else 128 + done.signal


if __name__ == "__main__":
    run_command(main)
