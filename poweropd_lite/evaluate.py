"""Scores a student on problems with known answers: Avg@k and Pass@k of sampled answers, greedy beside them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from poweropd_lite.answers import boxed_answer
from poweropd_lite.config import Config
from poweropd_lite.data import Prompt
from poweropd_lite.grade import is_correct

if TYPE_CHECKING:
    import torch

    from poweropd_lite.pair import Pair
    from poweropd_lite.rollout import Engine, Rollout


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. Shares are 0 to 1; lengths are tokens of the sampled answers, stop token counted."""

    avg: float  # Avg@k: share of right answers among all samples
    any: float  # Pass@k: share of problems with at least one right sample
    greedy: float  # share of right greedy answers
    length: float  # mean tokens of a sampled answer
    stop_share: float  # share of sampled answers that end by themselves
    boxed_share: float  # share of sampled answers that box something

    def metrics(self, samples: int) -> dict[str, float]:
        """Returns it as metrics of the group `eval`."""
        values = asdict(self)
        names = {"avg": f"avg@{samples}", "any": f"pass@{samples}"}
        return {f"eval/{names.get(key, key)}": value for key, value in values.items()}


def evaluate(
    engine: "Engine",
    problems: Sequence[Prompt],
    pair: "Pair",
    config: Config,
    device: "torch.device",
    tick: Callable[[int, int], bool] = lambda done, total: True,
) -> tuple[Evaluation, "list[list[Rollout]]"] | None:
    """Returns the evaluation of `problems` and, for each, its `eval_samples` sampled answers, then the greedy one.

    The engine samples from the weights of its last sync. The same random numbers serve every evaluation of a run, so two evaluations differ by the weights alone. `tick` is told
    how many answers of how many are there before each batch; when it says no, the evaluation ends and None is returned.
    """
    import torch

    from poweropd_lite.logprobs import Sampling
    from poweropd_lite.rollout import EVALUATION, Draws

    forbidden = torch.tensor(pair.forbidden, dtype=torch.long, device=device)
    longest = config.eval_max_new_tokens or config.max_new_tokens
    samplings = [Sampling(temperature=config.eval_temperature, forbidden=forbidden)] * config.eval_samples
    samplings.append(Sampling(top_k=1, forbidden=forbidden))
    rollouts: list[list[Rollout]] = [[] for _ in problems]
    # Prompts of like length decode together: less padding.
    order = sorted(range(len(problems)), key=lambda i: len(problems[i].ids))
    total = len(problems) * len(samplings)
    for k, sampling in enumerate(samplings):
        for start in range(0, len(order), config.eval_batch_size):
            if not tick(k * len(problems) + start, total):
                return None
            rows = order[start : start + config.eval_batch_size]
            draws = Draws(config.seed, EVALUATION, k, tuple(rows))
            done = engine.sample([problems[i].ids for i in rows], draws, sampling, longest)
            for i, rollout in zip(rows, done, strict=True):
                rollouts[i].append(rollout)
    texts = [[answer_text(pair, r) for r in answers] for answers in rollouts]
    right = [[is_correct(t, p.answer) for t in answers] for p, answers in zip(problems, texts, strict=True)]
    count = len(problems)
    sampled = [r for answers in rollouts for r in answers[:-1]]
    boxed = [boxed_answer(t) is not None for answers in texts for t in answers[:-1]]
    result = Evaluation(
        avg=sum(sum(answers[:-1]) for answers in right) / len(sampled),
        any=sum(any(answers[:-1]) for answers in right) / count,
        greedy=sum(answers[-1] for answers in right) / count,
        length=sum(len(r.completion_ids) for r in sampled) / len(sampled),
        stop_share=sum(r.finish == "stop" for r in sampled) / len(sampled),
        boxed_share=sum(boxed) / len(boxed),
    )
    return result, rollouts


def answer_text(pair: "Pair", rollout: "Rollout") -> str:
    """Returns a completion as text, without special tokens."""
    return pair.tokenizer.decode(list(rollout.completion_ids), skip_special_tokens=True)
