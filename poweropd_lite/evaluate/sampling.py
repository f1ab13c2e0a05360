"""Answers sampled from an engine, graded and scored: what training's evaluation and the evaluate command share.

A sample is named by (problem, k) and drawn with random numbers of its own, so a score does not depend on how
the batches fall, up to rounding, and two evaluations of one seed differ by their weights alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.pair import Pair
from poweropd_lite.engines.guard import sample_whole
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.engines.refill import Ended, in_batches
from poweropd_lite.evaluate.scores import avg_at, best_of, pass_at
from poweropd_lite.grade import Sample, Verdict, grade
from poweropd_lite.grade.custom import Grader, Scored, find_grader
from poweropd_lite.grade.custom import score as score_all
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import EVALUATION, Draws, Engine, Rollout
from poweropd_lite.method.update import Model
from poweropd_lite.problems.benchmarks import Problems
from poweropd_lite.problems.prompts import Prompt
from poweropd_lite.run.closeness import Closeness, measure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Key = tuple[int, int]  # (problem, k): the k-th sample of a problem, both from 0
Verdicts = dict[Key, Verdict] | dict[Key, Scored]


@dataclass(frozen=True)
class Answer:
    """One sampled answer. `tokens` counts the stop token."""

    text: str  # without special tokens
    tokens: int
    truncated: bool  # it reached the longest length and never stopped


@dataclass(frozen=True)
class Scores:
    """One benchmark's scores. Shares are 0 to 1, a user's scores as they are, lengths tokens."""

    avg: float  # Avg@n: share of right answers among all samples; or the mean of a user's function
    avg_error: float | None  # its standard error, over problems; None of a single one
    any: float  # Pass@n: share of problems with at least one right sample; or the mean of the best of each
    length: float  # mean tokens of an answer
    stop_share: float  # share of answers that end by themselves; the rest is truncated
    answer_share: float | None  # share that gives a final answer; None where a user's function scores
    undecided: int  # answers that could not be graded in time, or were refused: counted as wrong, or as 0


def sample_answers(
    engine: Engine, prompts: Sequence[Prompt], batch: Sequence[Key], sampling: Sampling, longest: int, seed: int
) -> list[Rollout]:
    """Returns the rollouts of a batch, in order, from the weights of the engine's last sync; raises UserError for NaN."""
    rollouts = sample_whole(engine, [prompts[i].ids for i, _ in batch], _draws(batch, seed), sampling, longest)
    _check_numbers(rollouts)
    return rollouts


def stream_answers(
    engine: Engine,
    prompts: Sequence[Prompt],
    keys: Sequence[Key],
    sampling: Sampling,
    longest: int,
    seed: int,
    lines: int,
) -> Iterator[Ended]:
    """Yields the rollouts of `keys` as they end, at most `lines` at once; `prompts` has one a key. Raises UserError for NaN.

    They are those of `sample_answers`, but for rounding ties.
    """
    asked = [prompt.ids for prompt in prompts], _draws(keys, seed), sampling, longest, lines
    for ended in (
        engine.stream(*asked) if isinstance(engine, LoopEngine) else in_batches(partial(sample_whole, engine), *asked)
    ):
        _check_numbers([rollout for _, rollout in ended.rollouts])
        yield ended


def _draws(keys: Sequence[Key], seed: int) -> Draws:
    return Draws(seed, EVALUATION, tuple(k for _, k in keys), tuple(i for i, _ in keys))


def _check_numbers(rollouts: Sequence[Rollout]) -> None:
    if any(math.isnan(logprob) for rollout in rollouts for logprob in rollout.logprobs):
        raise UserError(
            "the model gives log-probs that are not numbers: its weights are damaged, or its training went wrong"
        )


def as_answer(rollout: Rollout, tokenizer: "PreTrainedTokenizerBase") -> Answer:
    """Returns what a rollout says."""
    text = tokenizer.decode(list(rollout.completion_ids), skip_special_tokens=True)
    return Answer(str(text), len(rollout.completion_ids), rollout.finish == "length")


def grade_answers(
    prompts: Sequence[Prompt], answers: dict[Key, Answer], benchmark: str, grader: Grader | None = None
) -> dict[Key, Verdict] | dict[Key, Scored]:
    """Returns the verdict on each answer, or its score by a user's function."""
    asked = [(a.text, prompts[i]) for (i, _), a in answers.items()]
    if grader is not None:
        return dict(zip(answers, score_all(grader, [(text, p.row or "{}") for text, p in asked]), strict=True))
    samples = [Sample(text, prompt.answer or "", benchmark, prompt.tolerance) for text, prompt in asked]
    return dict(zip(answers, grade(samples), strict=True))


def right_counts(verdicts: dict[Key, Verdict], problems: int, official: bool = False) -> list[int]:
    """Returns how many samples of each problem are right."""
    right = [0] * problems
    for (i, _), verdict in verdicts.items():
        right[i] += bool(verdict.official if official else verdict.correct)
    return right


def by_problem(verdicts: Verdicts, problems: int, n: int, ks: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns Avg@n of each problem, and Pass@k for each k; of a user's scores their mean, and the best of k."""
    if all(isinstance(verdict, Verdict) for verdict in verdicts.values()):
        right = right_counts(cast(dict[Key, Verdict], verdicts), problems)
        return avg_at(right, n), [pass_at(right, n, k) for k in ks]
    scores: list[list[float]] = [[] for _ in range(problems)]
    for (i, _), scored in sorted(cast(dict[Key, Scored], verdicts).items()):
        scores[i].append(scored.score)
    values = np.array(scores, dtype=np.float64)
    return values.mean(axis=1), [best_of(values, k) for k in ks]


def score(answers: dict[Key, Answer], verdicts: Verdicts, problems: int, n: int) -> Scores:
    """Returns the scores of graded answers, n to every problem."""
    count, (mean, (best,)) = len(answers), by_problem(verdicts, problems, n, [n])
    has_answer = [v.answer is not None for v in verdicts.values() if isinstance(v, Verdict)]
    return Scores(
        avg=float(mean.mean()),
        avg_error=float(mean.std(ddof=1)) / math.sqrt(problems) if problems > 1 else None,
        any=float(best.mean()),
        length=sum(a.tokens for a in answers.values()) / count,
        stop_share=sum(not a.truncated for a in answers.values()) / count,
        answer_share=sum(has_answer) / count if has_answer else None,
        undecided=sum(v.undecided for v in verdicts.values()),
    )


@dataclass(frozen=True)
class TrainingEvaluation:
    """What a student scores in the middle of training."""

    n: int  # sampled answers a problem
    benchmarks: dict[str, dict[str, float]]  # of each, Scores and `greedy`: what greedy decoding answers right
    near: Closeness | None = None  # to the teacher, on prompts that are not trained on
    own: bool = False  # a user's function scores
    fault: str | None = None  # of the first completion that it gave no score

    def summary(self) -> dict[str, Any]:
        """Returns the plain means over the benchmarks, by name, the undecided answers summed; and what is known of the KL."""
        each = list(self.benchmarks.values())
        facts: dict[str, Any] = {}
        if each:
            means = [name for name in each[0] if name != "undecided" and each[0][name] is not None]
            facts = {name: sum(b[name] for b in each) / len(each) for name in means}
            facts["undecided"] = sum(b["undecided"] for b in each)
            errors = [b["avg_error"] for b in each]
            facts["avg_error"] = None if None in errors else math.hypot(*errors) / len(each)
        if self.near is not None:
            known = self.near.record()
            facts |= {name: known[name] for name in ("kl", "kl_error", "teacher_logprob")}
            facts |= {name: known[name] for name in ("length", "stop_share") if name not in facts}
        return facts

    def metrics(self) -> dict[str, float]:
        """Returns it as metrics: of the group `eval`, and with several benchmarks of `eval/NAME` too."""
        titles = {"avg": f"avg@{self.n}", "any": f"{'best' if self.own else 'pass'}@{self.n}"}
        groups = {"eval": self.summary()}
        if len(self.benchmarks) > 1:
            groups |= {f"eval/{name}": scores for name, scores in self.benchmarks.items()}
        return {
            f"{group}/{titles.get(k, k)}": value
            for group, scores in groups.items()
            for k, value in scores.items()
            if value is not None
        }

    def record(self) -> dict[str, Any]:
        """Returns it as JSON: the means, and with several benchmarks those of each."""
        several = {"benchmarks": self.benchmarks} if len(self.benchmarks) > 1 else {}
        return self.summary() | several | ({"fault": self.fault} if self.fault else {})


def evaluate_student(
    engine: Engine,
    sets: Sequence[Problems],
    pair: Pair,
    config: Config,
    device: torch.device,
    tick: Callable[[int, int], bool] = lambda done, total: True,
    teacher: Model | None = None,
    unseen: Sequence[Prompt] = (),
    token_budget: int | None = None,
) -> "tuple[TrainingEvaluation, Rollout] | None":
    """Returns the evaluation of the weights of the engine's last sync, and one of its rollouts to look at.

    `eval_samples` sampled answers a problem, and a greedy one; and the KL to the `teacher`, if there is one, on the prompts
    `unseen`, in micro-batches of `token_budget` or the config's. `tick` is told how many answers of how many are there before
    and then; when it says no, the evaluation ends and None is returned.
    """
    forbidden = torch.tensor(pair.forbidden, dtype=torch.long, device=device)
    longest = config.eval_max_new_tokens or config.max_new_tokens
    ways = (
        (range(config.eval_samples), Sampling(temperature=config.eval_temperature, forbidden=forbidden)),
        ([config.eval_samples], Sampling(top_k=1, forbidden=forbidden)),
    )
    asked = sum(len(s.prompts) for s in sets) * (config.eval_samples + 1)
    total = asked + (len(unseen) if teacher else 0)
    done, first, benchmarks, faults = 0, None, {}, list[str]()
    grader = find_grader(config.eval_grader) if config.eval_grader and sets else None
    for problems in sets:
        answers: list[dict[Key, Answer]] = []
        shortest = min(range(len(problems.prompts)), key=lambda i: len(problems.prompts[i].ids))
        for samples, sampling in ways:
            answers.append({})
            keys = [(i, k) for i in range(len(problems.prompts)) for k in samples]
            prompts = [problems.prompts[i] for i, _ in keys]
            if not tick(done, total):
                return None
            size = config.eval_batch_size
            for ended in stream_answers(engine, prompts, keys, sampling, longest, config.seed, size):
                new = {keys[i]: rollout for i, rollout in ended.rollouts}
                answers[-1] |= {key: as_answer(rollout, pair.tokenizer) for key, rollout in new.items()}
                first, done = first or new.get((shortest, 0)), done + len(new)
                if not tick(done, total):
                    return None
        name, count = problems.benchmark.name, len(problems.prompts)
        drawn, greedy = (
            grade_answers(problems.prompts, each, problems.benchmark.graded_as, grader) for each in answers
        )
        benchmarks[name] = asdict(score(answers[0], drawn, count, config.eval_samples))
        benchmarks[name]["greedy"] = float(by_problem(greedy, count, 1, [])[0].mean())
        faults += [v.fault for v in drawn.values() if isinstance(v, Scored) and v.fault is not None]
    near = None
    if teacher is not None and unseen:
        theirs = config.teacher_tokens_at_once
        found = measure(
            engine, lambda: teacher, unseen, forbidden, config.max_new_tokens, config.seed,
            config.batch_size, min(token_budget or theirs, theirs), lambda done: tick(asked + done, total),
        )  # fmt: skip
        if found is None:
            return None
        near, first = found[0], first or found[1]
    assert first is not None  # no set is without a problem
    return TrainingEvaluation(config.eval_samples, benchmarks, near, grader is not None, *faults[:1]), first
