"""Answers sampled from an engine, graded and scored: what training's evaluation and the evaluate command share.

A sample is named by (problem, k) and drawn with random numbers of its own, so a score does not depend on how
the batches fall, up to rounding, and two evaluations of one seed differ by their weights alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.pair import Pair
from poweropd_lite.evaluate.scores import avg_at, pass_at
from poweropd_lite.grade import Sample, Verdict, grade
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import EVALUATION, Draws, Engine, Rollout
from poweropd_lite.method.update import Model
from poweropd_lite.problems.benchmarks import Problems
from poweropd_lite.problems.prompts import Prompt
from poweropd_lite.run.closeness import Closeness, measure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Key = tuple[int, int]  # (problem, k): the k-th sample of a problem, both from 0


@dataclass(frozen=True)
class Answer:
    """One sampled answer. `tokens` counts the stop token."""

    text: str  # without special tokens
    tokens: int
    truncated: bool  # it reached the longest length and never stopped


@dataclass(frozen=True)
class Scores:
    """One benchmark's scores. Shares are 0 to 1, lengths tokens."""

    avg: float  # Avg@n: share of right answers among all samples
    any: float  # Pass@n: share of problems with at least one right sample
    length: float  # mean tokens of an answer
    stop_share: float  # share of answers that end by themselves; the rest is truncated
    answer_share: float  # share that gives a final answer
    undecided: int  # answers that could not be graded in time, or were refused: counted as wrong


def batches(prompts: Sequence[Prompt], samples: Sequence[int], size: int) -> list[list[Key]]:
    """Returns every (problem, k) once, in batches of `size`; prompts of like length together, for less padding."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    keys = [(i, k) for i in order for k in samples]
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def sample_answers(
    engine: Engine, prompts: Sequence[Prompt], batch: Sequence[Key], sampling: Sampling, longest: int, seed: int
) -> list[Rollout]:
    """Returns the rollouts of a batch, in order, from the weights of the engine's last sync; raises UserError for NaN."""
    draws = Draws(seed, EVALUATION, tuple(k for _, k in batch), tuple(i for i, _ in batch))
    rollouts = engine.sample([prompts[i].ids for i, _ in batch], draws, sampling, longest)
    if any(math.isnan(logprob) for rollout in rollouts for logprob in rollout.logprobs):
        raise UserError(
            "the model gives log-probs that are not numbers: its weights are damaged, or its training went wrong"
        )
    return rollouts


def as_answer(rollout: Rollout, tokenizer: "PreTrainedTokenizerBase") -> Answer:
    """Returns what a rollout says."""
    text = tokenizer.decode(list(rollout.completion_ids), skip_special_tokens=True)
    return Answer(str(text), len(rollout.completion_ids), rollout.finish == "length")


def grade_answers(prompts: Sequence[Prompt], answers: dict[Key, Answer], benchmark: str) -> dict[Key, Verdict]:
    """Returns the verdict on each answer."""
    asked = [(a.text, prompts[i]) for (i, _), a in answers.items()]
    samples = [Sample(text, prompt.answer or "", benchmark, prompt.tolerance) for text, prompt in asked]
    return dict(zip(answers, grade(samples), strict=True))


def right_counts(verdicts: dict[Key, Verdict], problems: int, official: bool = False) -> list[int]:
    """Returns how many samples of each problem are right."""
    right = [0] * problems
    for (i, _), verdict in verdicts.items():
        right[i] += bool(verdict.official if official else verdict.correct)
    return right


def score(answers: dict[Key, Answer], verdicts: dict[Key, Verdict], problems: int, n: int) -> Scores:
    """Returns the scores of graded answers, n to every problem."""
    count, right = len(answers), right_counts(verdicts, problems)
    return Scores(
        avg=float(avg_at(right, n).mean()),
        any=float(pass_at(right, n, n).mean()),
        length=sum(a.tokens for a in answers.values()) / count,
        stop_share=sum(not a.truncated for a in answers.values()) / count,
        answer_share=sum(v.answer is not None for v in verdicts.values()) / count,
        undecided=sum(v.undecided for v in verdicts.values()),
    )


@dataclass(frozen=True)
class TrainingEvaluation:
    """What a student scores in the middle of training."""

    n: int  # sampled answers a problem
    benchmarks: dict[str, dict[str, float]]  # of each, Scores and `greedy`: what greedy decoding answers right
    near: Closeness | None = None  # to the teacher, on prompts that are not trained on

    def summary(self) -> dict[str, Any]:
        """Returns the plain means over the benchmarks, by name, the undecided answers summed; and what is known of the KL."""
        each = list(self.benchmarks.values())
        facts: dict[str, Any] = {}
        if each:
            facts = {name: sum(b[name] for b in each) / len(each) for name in each[0] if name != "undecided"}
            facts["undecided"] = sum(b["undecided"] for b in each)
        if self.near is not None:
            known = self.near.record()
            facts |= {name: known[name] for name in ("kl", "kl_error", "teacher_logprob")}
        return facts

    def metrics(self) -> dict[str, float]:
        """Returns it as metrics: of the group `eval`, and with several benchmarks of `eval/NAME` too."""
        titles = {"avg": f"avg@{self.n}", "any": f"pass@{self.n}"}
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
        return self.summary() | ({"benchmarks": self.benchmarks} if len(self.benchmarks) > 1 else {})


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
    each batch; when it says no, the evaluation ends and None is returned.
    """
    forbidden = torch.tensor(pair.forbidden, dtype=torch.long, device=device)
    longest = config.eval_max_new_tokens or config.max_new_tokens
    ways = (
        (range(config.eval_samples), Sampling(temperature=config.eval_temperature, forbidden=forbidden)),
        ([config.eval_samples], Sampling(top_k=1, forbidden=forbidden)),
    )
    asked = sum(len(s.prompts) for s in sets) * (config.eval_samples + 1)
    total = asked + (len(unseen) if teacher else 0)
    done, first, benchmarks = 0, None, {}
    for problems in sets:
        answers: list[dict[Key, Answer]] = []
        for samples, sampling in ways:
            answers.append({})
            for batch in batches(problems.prompts, samples, config.eval_batch_size):
                if not tick(done, total):
                    return None
                rollouts = sample_answers(engine, problems.prompts, batch, sampling, longest, config.seed)
                answers[-1] |= {key: as_answer(r, pair.tokenizer) for key, r in zip(batch, rollouts, strict=True)}
                first, done = first or rollouts[0], done + len(batch)
        name, count = problems.benchmark.name, len(problems.prompts)
        drawn, greedy = (grade_answers(problems.prompts, each, problems.benchmark.graded_as) for each in answers)
        benchmarks[name] = asdict(score(answers[0], drawn, count, config.eval_samples))
        benchmarks[name]["greedy"] = sum(v.correct for v in greedy.values()) / count
    near = None
    if teacher is not None and unseen:
        found = measure(
            engine, lambda: teacher, [prompt.ids for prompt in unseen], forbidden, config.max_new_tokens, config.seed,
            config.batch_size, token_budget or config.tokens_at_once, lambda done: tick(asked + done, total),
        )  # fmt: skip
        if found is None:
            return None
        near, first = found[0], first or found[1]
    assert first is not None  # no set is without a problem
    return TrainingEvaluation(config.eval_samples, benchmarks, near), first
