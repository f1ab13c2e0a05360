"""What a rented machine needs for each config, disk and hours, as docs/cloud.md shows it. No GPU needed.

    python benchmarks/rented.py
    python benchmarks/rented.py --cards l4 --configs qwen3-0.6b-4b

Computed, not measured. Disk by arithmetic: a model's files hold 16 bits a weight, a tied head counted twice as some files have it;
a checkpoint the trained weights and AdamW's two averages in float32; a run keeps `keep_checkpoints` of them and writes the next
beside them, and its weights at the end in float32. Hours are `plan`'s of the whole run, its evaluations counted. The environment
and its caches are not in it. About ten minutes on two cores.
"""

import argparse
from dataclasses import dataclass

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.models.shape import Shape, read_shape
from poweropd_lite.plan import plan
from poweropd_lite.plan.cards import CARDS
from poweropd_lite.plan.settings import PlanConfig

CONFIGS = "qwen3-0.6b-4b,qwen3-0.6b-8b,qwen3-1.7b-4b,qwen3-1.7b-8b,qwen3-0.6b-4b-full,qwen3-1.7b-8b-full"
FLOAT = 4  # bytes
GB = 1e9


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk of a run."""

    models: int  # downloaded
    checkpoint: int
    run: int  # its folder at its largest


def disk(config: Config, student: Shape, teacher: Shape, trained: int) -> Disk:
    """Returns what a run of `config` that trains so many weights takes at the most; AdamW's state is float32."""
    checkpoint = 3 * FLOAT * trained
    weights = FLOAT * (student.elements if config.full_finetune else trained)
    return Disk(files(student) + files(teacher), checkpoint, (config.keep_checkpoints + 1) * checkpoint + weights)


def files(shape: Shape) -> int:
    """Returns the bytes of a model's files in 16 bits, a tied head counted twice."""
    rows, width = shape.head
    return 2 * (shape.elements + getattr(shape.config, "tie_word_embeddings", False) * rows * width)


def row(name: str, cards: list[str]) -> str:
    """Returns the line of a config."""
    config, hours = load_config(name), []
    for gpu in cards:
        report, fitting = plan(config, PlanConfig(gpu=gpu), lambda _: None)
        fits = fitting is not None and fitting.full_finetune == config.full_finetune
        if fits and report["changes"]:
            report, _ = plan(fitting, PlanConfig(gpu=gpu), lambda _: None)
        hours.append(f"{report['seconds']['run'] / 3600:.1f}" if fits else "does not fit")
    student, teacher = read_shape(config.student, "student"), read_shape(config.teacher, "teacher")
    found = disk(config, student, teacher, report["trained"])
    sizes = [f"{size / GB:.1f}" for size in (found.models, found.checkpoint, found.run, found.models + found.run)]
    return "| " + " | ".join([f"`{name}`", *sizes, *hours]) + " |"


def main() -> None:
    """Prints the Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=CONFIGS)
    parser.add_argument("--cards", default="l4,rtx4090,a100-80gb,h100", help=f"of {', '.join(CARDS)}")
    args = parser.parse_args()
    cards = args.cards.split(",")
    heads = ["config", "models, GB", "a checkpoint, GB", "run folder at most, GB", "both, GB"]
    print("| " + " | ".join(heads + [f"{gpu}, h" for gpu in cards]) + " |\n" + "|---" * (len(heads) + len(cards)) + "|")
    for name in args.configs.split(","):
        print(row(name, cards), flush=True)


if __name__ == "__main__":
    main()
