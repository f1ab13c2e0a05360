"""What a step costs on 1, 8 and 64 cards, and when the teacher moves to cards of its own, as docs/scaling.md shows it. No GPU needed.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --card a100-80gb --network 25

Computed, not measured: `plan --gpus`, whose rates were found on one H100 (poweropd_lite/plan/cards.py), and nothing has run on more
than one card. Eight cards are one machine's; more are machines of eight, joined by a network of which each card has a port (--network,
1e9 bytes a second one way; 50 is 400 Gb/s, assumed), reached at the share that is assumed of memory. Every rollout is as long as
the config allows. About ten minutes on two cores.
"""

import argparse
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import load_config
from poweropd_lite.plan import plan
from poweropd_lite.plan.settings import PlanConfig

CONFIGS = "qwen3-0.6b-4b,qwen3-1.7b-8b,qwen3-0.6b-4b-full,qwen3-1.7b-8b-full"
MACHINE = 8  # cards
CARDS = (1, MACHINE, 64)
SHARED = (1, 2, 4, 8, 32)  # cards that share the recipe's 32 prompts
# As in its published config.json; what the four pairs have is in the package.
QWEN3_32B = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 25600, "vocab_size": 151936, "tie_word_embeddings": False,
    "max_position_embeddings": 40960,
}  # fmt: skip
ANSWER = 70  # bytes a token that a served teacher sends (docs/teachers.md)
GIB = 2**30


@dataclass(frozen=True)
class Step:
    """A step of `cards` cards."""

    cards: int
    prompts: int  # of all cards
    needed: float  # GiB a card
    sent: int  # bytes a card sends to sum the gradient
    phases: dict[str, float]  # seconds, the sum among them

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    def tokens(self, new: int) -> float:
        """Returns sampled tokens a second, of completions of `new` tokens."""
        return self.prompts * new / self.seconds


def step(found: dict[str, Any], prompts: int, network: float) -> Step:
    """Returns the step of a plan's report; of more than one machine the sum goes over the network."""
    shared, phases = found["gpus"] or {"cards": 1, "sent_bytes": 0}, dict(found["seconds"]["step"])
    if shared["cards"] > MACHINE:
        phases["all-reduce"] = shared["sent_bytes"] / (network * found["seconds"]["assumed"]["bandwidth_share"])
    return Step(shared["cards"], prompts, found["needed_bytes"] / GIB, shared["sent_bytes"], phases)


def pool(cards: int, score: float, rest: float) -> int:
    """Returns how many of `cards` a pool of teachers wants, so that while the others make a step without scoring (`rest` seconds)
    it scores one (`score` seconds on one card for one card's prompts): the fewest P with (cards - P) score / P <= rest.
    """
    return math.ceil(cards * score / (score + rest))


def waiting(cards: int, score: float, rest: float) -> tuple[int, float]:
    """Returns the pool, and with it the seconds of a step, that gives the most prompts a second where the others wait while it
    scores, as `train` does.
    """
    best = max(range(1, cards), key=lambda p: (cards - p) / (rest + score * (cards - p) / p))
    return best, rest + score * (cards - best) / best


def planned(name: str, gpu: str, cards: int, **settings: Any) -> dict[str, Any]:
    return plan(load_config(name, **settings), PlanConfig(gpu=gpu, gpus=cards), lambda _: None)[0]


def table(heads: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows), end="\n\n", flush=True)


def grown(names: list[str], gpu: str, network: float) -> None:
    """Prints a step of which every card has 32 prompts."""
    rows = []
    for name in names:
        config = load_config(name)
        each, new, alone = config.batch_size, config.max_new_tokens, 0.0
        for cards in CARDS:
            s = step(planned(name, gpu, cards, batch_size=each * cards), each * cards, network)
            alone = alone or s.tokens(new)
            rows.append(
                [f"`{name}`", str(cards), f"{s.prompts:,}", f"{s.needed:.1f}", f"{s.sent / 1e6:,.0f}"]
                + [f"{1e3 * s.phases.get('all-reduce', 0):,.1f}", f"{s.seconds:.2f}", f"{s.tokens(new):,.0f}"]
                + [f"{s.tokens(new) / (cards * alone):.1%}"]
            )
    heads = ["config", "cards", "prompts", "GiB a card", "sent a card, MB", "sum, ms", "s a step", "tokens/s"]
    table([*heads, "of so many alone"], rows)


def divided(name: str, gpu: str, network: float) -> None:
    """Prints a step of the recipe's own prompts, shared."""
    config, rows, alone = load_config(name), [], 0.0
    for cards in SHARED:
        s = step(planned(name, gpu, cards), config.batch_size, network)
        alone = alone or s.seconds
        phases = [f"{s.phases[phase]:.2f}" for phase in ("rollout", "score", "update")]
        rows.append(
            [
                str(cards),
                str(math.ceil(config.batch_size / cards)),
                *phases,
                f"{1e3 * s.phases.get('all-reduce', 0):.1f}",
            ]
            + [f"{s.seconds:.2f}", f"{s.tokens(config.max_new_tokens):,.0f}", f"{alone / s.seconds:.1f}"]
        )
    heads = ["cards", "prompts a card", "rollout, s", "score, s", "update, s", "sum, ms", "s a step", "tokens/s"]
    table([*heads, "times faster"], rows)


def teachers(name: str, gpu: str, folder: Path) -> None:
    """Prints what each teacher costs beside the student of `name`, and the pool that takes its place."""
    (folder / "config.json").write_text(json.dumps(QWEN3_32B))
    served = {"teacher": "http://pool:8000", "teacher_name": "Qwen/Qwen3-4B"}
    without, rows = planned(name, "24", 1, **served), []
    for label, teacher, bits in [
        ("4B, 4 bits", "Qwen/Qwen3-4B", 4), ("8B, 4 bits", "Qwen/Qwen3-8B", 4), ("32B, 4 bits", str(folder), 4), ("32B, 16 bits", str(folder), 16),
    ]:  # fmt: skip
        settings = {"teacher": teacher, "teacher_bits": bits}
        least, timed = planned(name, "24", 1, **settings), planned(name, gpu, 1, **settings)
        score = timed["seconds"]["step"]["score"]
        rest = sum(timed["seconds"]["step"].values()) - score
        few, seconds = waiting(MACHINE, score, rest)
        prompts = load_config(name).batch_size
        rows.append(
            [label, f"{least['phases']['rollout']['teacher'] / GIB:.1f}", f"{least['needed_bytes'] / GIB:.1f}"]
            + [f"{without['needed_bytes'] / GIB:.1f}", f"{score:.2f}", f"{rest:.2f}"]
            + [f"{MACHINE * prompts / (score + rest):.0f}", f"{(MACHINE - few) * prompts / seconds:.0f} ({few})"]
            + [
                f"{(MACHINE - (p := pool(MACHINE, score, rest))) * prompts / rest:.0f} ({p})",
                str(pool(64, score, rest)),
            ]
        )
    heads = ["teacher", "its weights, GiB", "a card with it, GiB", "without, GiB", "score, s", "the rest, s"]
    heads += ["8 cards, each with it: prompts/s", "a pool that is waited for", "a pool beside the rest", "pool of 64"]
    table(heads, rows)
    config = load_config(name)
    tokens = MACHINE * config.batch_size * (PlanConfig().prompt_tokens + config.max_new_tokens)
    print(f"a pool answers {MACHINE * config.batch_size} prompts with {ANSWER * tokens / 1e6:,.1f} MB")


def main() -> None:
    """Prints the Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=CONFIGS)
    parser.add_argument("--card", default="h100", help="one whose figures are known (poweropd_lite/plan/cards.py)")
    parser.add_argument("--network", type=float, default=50.0, help="of each card, 1e9 bytes a second one way; assumed")
    args = parser.parse_args()
    names, network = args.configs.split(","), args.network * 1e9
    print(f"computed, not measured; {args.card}; network of {args.network:g} GB/s a card assumed\n")
    grown(names, args.card, network)
    divided(names[0], args.card, network)
    with tempfile.TemporaryDirectory() as folder:
        teachers(names[0], args.card, Path(folder))


if __name__ == "__main__":
    main()
