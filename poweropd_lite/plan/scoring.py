"""How long `evaluate --benchmarks all --n 8` takes on a card: the paper's row of a trained student, by the built-in loop.

On an H100 the formula gives 2.9 ms a decoded token of 32 lines of 0.6B + LoRA (prompts of 128, mean over 1,024 new tokens),
where 2.78 were measured (docs/performance.md), and 1.02 to 1.05 of the seconds of three evaluations. Of other cards nothing was
measured, and of no card the seven benchmarks.
"""

from dataclasses import dataclass

from poweropd_lite.engines.choose import answers_at_once
from poweropd_lite.models.shape import Shape
from poweropd_lite.plan.cards import LOGIT_PASSES, TOKEN_OVERHEAD, Card
from poweropd_lite.plan.flops import body_flops, head_flops
from poweropd_lite.plan.memory import GIB
from poweropd_lite.problems.benchmarks import find_benchmarks

SAMPLES = 8  # a problem, as in the paper
PROMPT, LONGEST_PROMPT = 128, 1024  # tokens of a usual problem, and what the cache has room for; assumed
# Tokens of an answer over all seven, as the paper's trained students give them (evaluate/paper_tables.json): 912 to 1,646 a
# row. In the rows that don't learn to stop it is 3,987 to 4,095.
USUAL = 1300


@dataclass(frozen=True)
class Scoring:
    """An evaluation on all seven benchmarks: what it is taken to be, and its seconds."""

    answers: int
    lines: int  # answers at once, as evaluate chooses it
    usual: int  # tokens of an answer, on average
    longest: int  # tokens that an answer may have
    seconds: float
    longest_seconds: float  # if no answer ends before


def plan_scoring(
    shape: Shape, adapter: int, bits: int, card: Card, compute_share: float, bandwidth_share: float, kernels: bool,
    asked: str = "all", samples: int = SAMPLES,
) -> Scoring:  # fmt: skip
    """Returns the plan for a student with an `adapter` of so many weights, its base at `bits`, alone on the card, with or without
    our `kernels`; `asked` is which benchmarks, as evaluate takes them, and `samples` how many answers a problem.

    Places of answers that ended are filled again, so the tokens of all answers are shared by `lines` evenly, but for the last
    answers: as many steps as an answer may have tokens. A step reads the weights once, each line's keys and values as far as
    it has come (of uneven answers about a mean length, of even ones half of it) and its logits, to draw from, as often as an update.
    """
    benchmarks = find_benchmarks(asked)
    answers = samples * sum(max(b.sizes) for b in benchmarks)
    longest = max(b.longest for b in benchmarks)
    length, memory = LONGEST_PROMPT + longest, round(card.gib * GIB)
    lines = min(answers, answers_at_once("loop", "cuda", shape, bits, length, 2, memory))
    rate, bandwidth = card.tflops * 1e12 * compute_share, card.bandwidth * 1e9 * bandwidth_share
    weights = shape.weight_bytes(4 if bits == 4 else 16) + 4 * adapter

    def seconds(tokens: int) -> float:
        reached = PROMPT + min(tokens, longest // 2)
        read = weights + shape.cache_bytes(lines, reached, 2) + LOGIT_PASSES[kernels][1] * 4 * lines * shape.head[0]
        steps = answers * tokens / lines + (longest - tokens)
        products = sum(body_flops(shape, answers, PROMPT + tokens)) + head_flops(shape, answers * tokens)
        products += 2.0 * adapter * answers * (PROMPT + tokens)
        return steps * (read / bandwidth + TOKEN_OVERHEAD[kernels]) + products / rate

    return Scoring(answers, lines, USUAL, longest, seconds(USUAL), seconds(longest))
