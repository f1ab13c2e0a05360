"""A data-parallel run over equal cards of one machine: what of a step each card does, and what summing the gradient costs.

`accelerate launch --multi_gpu --num_processes N -m poweropd_lite.train` is a process a card. A step's prompts are shared out; each card
has the student, an engine, a teacher (or all ask one that is served) and the optimizer's state. So a card's plan is that of a
smaller batch. What is added is one sum of the trained weights' gradient, float32, before each takes the same step.

The sum is taken for a ring's: a card sends, and receives at the same time, 2 (N - 1) / N of the gradient's bytes. What starting
it costs, NCCL's own memory and the wait for the card whose completions are longest are not counted.
"""

import math
from typing import Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError
from poweropd_lite.plan.cards import BUS, Card, Machine

LAUNCH = "accelerate launch --multi_gpu --num_processes"  # which without the first starts one, given a number


def program(cards: int) -> str:
    """Returns what starts `-m poweropd_lite.train` on so many cards."""
    return "python" if cards == 1 else f"{LAUNCH} {cards}"


def of_one_card(config: Config, cards: int) -> Config:
    """Returns the part of a run that the fullest of `cards` has."""
    return changed(config, batch_size=math.ceil(config.batch_size / cards)) if cards > 1 else config


def check_cards(config: Config, cards: int, machine: Machine) -> None:
    """Raises UserError where there is nothing to share."""
    if cards == 1:
        return
    if not machine.cuda:
        mend = "type --gpu with a card, such as --gpu 24, or leave --gpus out"
        raise UserError(f"gpus: found {cards}, but what is planned for is {machine.name}, no card; {mend}")
    if cards > config.batch_size:
        much = f"a step has {config.batch_size} prompts (batch_size), and each card wants one"
        raise UserError(
            f"gpus: found {cards}, but {much}; type --gpus {config.batch_size}, or --batch-size {cards} or more"
        )


def sent_bytes(trained: int, cards: int) -> int:
    """Returns the bytes that each of `cards` sends in a step to sum the float32 gradient of so many `trained` weights."""
    return 2 * (cards - 1) * 4 * trained // cards


def link(card: Card, share: float) -> tuple[str, float]:
    """Returns what joins cards, and its bytes a second one way: a `share` of NVLink's, or what is assumed of PCIe."""
    return ("NVLink", card.nvlink * 1e9 * share) if card.nvlink else ("PCIe", BUS)


def summing(config: Config, whole: int, cards: int, trained: int, card: Card | None, share: float) -> dict[str, Any]:
    """Returns what a plan says of a step of `whole` prompts on `cards`, `config` being the part of one of them."""
    sent = sent_bytes(trained, cards)
    out: dict[str, Any] = {"cards": cards, "batch": whole, "prompts": config.batch_size, "sent_bytes": sent}
    name, rate = link(card, share) if card is not None else (None, None)
    return {**out, "link": name, "link_rate": rate, "seconds": None if rate is None else sent / rate}


def head_words(g: dict[str, Any]) -> str:
    """Returns the line above a plan: of what part it is."""
    return "all below is of one of {cards} cards, which has {prompts} of a step's {batch} prompts at most".format(**g)


def sum_words(g: dict[str, Any]) -> str:
    """Returns the line on the gradient's sum."""
    line = f"gpus    each sends {g['sent_bytes'] / 2**20:,.1f} MiB of gradient a step"
    if g["seconds"] is None:
        return line
    assumed = "; assumed, PCIe 3.0 x16" if g["link"] == "PCIe" else ", its share as the memory's"
    return f"{line}: {g['seconds'] * 1e3:,.3g} ms at {g['link_rate'] / 1e9:g} GB/s ({g['link']}{assumed}; not measured)"
