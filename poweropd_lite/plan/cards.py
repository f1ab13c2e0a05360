"""Machines: cards by name with their makers' published figures, and the seconds of a step at a share of these.

Figures of products and bandwidth are those of NVIDIA's data sheets (T4, V100, P100, A10, A100, A6000, RTX 6000 Ada, L4,
L40S, H100, H200, B200, and the server edition of RTX PRO 6000, which is the card of Google's G4) and architecture white
papers (GA102 for RTX 30, Ada for RTX 40, RTX Blackwell for RTX 50): without sparsity, and for GeForce cards with
float32 sums, which there is half of the rate with float16 sums. float16 and bfloat16 have one rate where a card has
both. A P100 has no tensor cores: its products with float32 sums run at its float32 rate. In float32 all run at that of
their plain cores: torch rounds no product to TF32 unless told to. Of memory it is what CUDA reports, a little less than
is sold, and less again where error correction takes a part (A10, L4, L40S, RTX 6000 Ada). NVLink's rate is half of what
the data sheets give for both ways (V100, A100, H100, H200, B200: the boards that have it between all cards of a
machine; bridges of two cards are left out).

What a step costs beside its products was found on one H100 (benchmarks/gpu/results/h100-kernels), and is scaled by the
two figures for any other card: an estimate, and on cards that 70 W hold back (T4, L4) a lower bound. `--compute-share`
and `--bandwidth-share` change the shares.
"""

from dataclasses import dataclass

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import machine_bytes
from poweropd_lite.base.teachers import SELF
from poweropd_lite.models.shape import Shape
from poweropd_lite.plan.flops import Lengths, step_flops
from poweropd_lite.plan.memory import GIB, MemoryPlan, teacher_compute
from poweropd_lite.problems.benchmarks import find_benchmarks
from poweropd_lite.rewards.table import passes

BFLOAT16 = 8.0  # the least compute capability that has it (Ampere), and that Triton compiles our kernels for
# Times that float32 logits are read or written: for a score, and for a score and its gradient (head.py, logprobs.py).
LOGIT_PASSES = {True: (2, 4), False: (3, 10)}  # with the kernels, and without
# Times that a layer's inputs and outputs, as its matrices have them, are read or written beside the products, layers
# compiled: in a forward, and in its backward. By the H100's student with and without checkpointing, and its teacher.
FORWARD_PASSES, BACKWARD_PASSES = 1.6, 9.0
# Seconds a decoded token costs beside reading weights, keys and values: its kernels' starts, with and without ours.
TOKEN_OVERHEAD = {True: 1e-3, False: 4e-3}
# Bytes a second from the host's pinned memory to a card: about what PCIe 3.0 x16 gives, assumed. 4.0 has twice of it.
BUS = 12e9
STEP_OVERHEAD = 0.015  # seconds of an optimizer step: its many small kernels


@dataclass(frozen=True)
class Card:
    """A card's published figures."""

    gib: float  # memory that a program can use of it
    tflops: float  # dense bfloat16 products with float32 sums (float16 where there is no bfloat16), 1e12 a second
    float32: float  # products in float32, which no tensor core makes, 1e12 a second
    bandwidth: float  # of its memory, 1e9 bytes a second
    capability: float  # CUDA's compute capability
    nvlink: float = 0.0  # to the machine's other cards, one way, 1e9 bytes a second; 0: it has PCIe alone


@dataclass(frozen=True)
class Machine:
    """What is planned for."""

    name: str
    cuda: bool
    card: Card | None = None  # its published figures, if they are known
    gib: float | None = None  # of memory that can be used; None: any
    capability: float | None = None  # CUDA's compute capability, if it is known

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16, as every card does that is sold today, and runs our kernels."""
        return self.capability is None or self.capability >= BFLOAT16


CARDS = {
    "rtx4060": Card(7.6, 30.2, 15.1, 272, 8.9),
    "rtx5060": Card(7.5, 38.4, 19.2, 448, 12.0),
    "rtx3060": Card(11.6, 25.5, 12.7, 360, 8.6),
    "rtx4070": Card(11.6, 58.3, 29.1, 504, 8.9),
    "rtx5070": Card(11.5, 61.7, 30.9, 672, 12.0),
    "t4": Card(14.6, 65, 8.1, 320, 7.5),
    "p100": Card(15.8, 9.3, 9.3, 732, 6.0),
    "v100": Card(15.7, 125, 15.7, 900, 7.0, 150),
    "rtx4080": Card(15.6, 97.5, 48.7, 717, 8.9),
    "rtx5080": Card(15.4, 112.6, 56.3, 960, 12.0),
    "rtx3090": Card(23.5, 71, 35.6, 936, 8.6),
    "rtx4090": Card(23.5, 165, 82.6, 1008, 8.9),
    "a10": Card(22.0, 125, 31.2, 600, 8.6),
    "l4": Card(22.0, 121, 30.3, 300, 8.9),
    "rtx5090": Card(31.3, 209, 104.8, 1792, 12.0),
    "a100-40gb": Card(39.4, 312, 19.5, 1555, 8.0, 300),
    "a6000": Card(47.4, 155, 38.7, 768, 8.6),
    "l40s": Card(44.4, 362, 91.6, 864, 8.9),
    "rtx6000-ada": Card(44.4, 364, 91.1, 960, 8.9),
    "a100-80gb": Card(79.1, 312, 19.5, 2039, 8.0, 300),
    "h100": Card(79.1, 989, 67, 3350, 9.0, 450),
    "h100-pcie": Card(79.1, 756, 51, 2000, 9.0),
    "rtxpro6000": Card(94.9, 480, 120, 1597, 12.0),
    "h200": Card(139.8, 989, 67, 4800, 9.0, 450),
    "b200": Card(178.3, 2250, 75, 8000, 10.0, 900),
}
OTHER_NAMES = {"a100": "a100-40gb", "g4": "rtxpro6000"}  # of two sizes the smaller; Google's machine for its card
SIZES = (12, 16, 24, 40, 80)  # GB, of the cards that people have
# GiB that can be used of the smallest card sold under a size in GB
_USABLE: dict[float, float] = {12: 11.5, 16: 14.6, 24: 22.0, 32: 31.3, 40: 39.4, 48: 44.4, 80: 79.1, 96: 94.9}


def find_machine(gpu: str | None, wants_card: bool) -> Machine:
    """Returns the machine of --gpu; if that is not given, the card that is here; without one any card, if the run
    `wants_card`, as the paper's pairs do, or else this CPU. Raises UserError for a card that is not known.
    """
    if gpu is not None and gpu.lower() != "cpu":
        return find_card(gpu)
    if gpu is None and torch.cuda.is_available():
        name, total = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB
        major, minor = torch.cuda.get_device_capability()
        return Machine(name, True, known_card(name, total), total, major + minor / 10)
    if gpu is None and wants_card:
        return Machine("any card", True)
    return Machine("this machine's CPU", False, None, machine_bytes() / GIB)


def find_card(text: str) -> Machine:
    """Returns the card of a name, such as rtx4090, or of a size in GB, such as 24; raises UserError for neither."""
    plain = _plain(OTHER_NAMES.get(_plain(text), text))
    for name, card in CARDS.items():
        if plain.removeprefix("rtx") == _plain(name).removeprefix("rtx"):
            return Machine(name, True, card, card.gib, card.capability)
    number = plain.removesuffix("gb").removesuffix("gib").removesuffix("g")
    try:
        size = float(number)
    except ValueError:
        size = 0.0
    if not 1 <= size <= 512:  # a larger number is no size of one card
        mend = "a card that is not among them is planned by its size"
        raise UserError(f"gpu: found {text!r}, neither a size in GB, such as 24, nor one of {', '.join(CARDS)}; {mend}")
    return Machine(f"{size:g} GB", True, None, _USABLE.get(size, 0.91 * size))


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum() or c == ".")


def known_card(name: str, gib: float) -> Card | None:
    """Returns the figures of a card by the name and the memory that its driver reports, if they are known."""
    words = set(name.lower().replace("-", " ").split())
    others = {"ti", "super", "laptop", "max", "mobile", "d", "gb200"}
    if words & others or ("generation" in words and not {"rtx", "6000", "ada"} <= words):
        return None  # another chip under the same number
    plain = _plain(name)
    named = [key for key in CARDS if all(part.removesuffix("gb") in plain for part in key.split("-"))]
    # An L40S is no L4, nor an A10G an A10, whose names theirs hold; an A100 is of one of two sizes; of h100 and
    # h100-pcie the longer name is meant.
    alike = sorted((key for key in named if abs(CARDS[key].gib - gib) < 0.1 * gib), key=len)
    if not alike or (alike[-1] == "a10" and "a10g" in words):
        return None
    return CARDS[alike[-1]]


def step_seconds(
    config: Config, plan: MemoryPlan, card: Card, lengths: Lengths, compute_share: float, bandwidth_share: float
) -> dict[str, float]:
    """Returns the estimated seconds of a step's rollouts, scores, update and optimizer."""
    flops, student, teacher = step_flops(config, plan.student, plan.teacher, lengths), plan.student.shape, plan.teacher
    bandwidth, size = card.bandwidth * 1e9 * bandwidth_share, itemsize(config)
    theirs = teacher_compute(config, torch.float32 if size == 4 else torch.bfloat16).itemsize
    rate, score_rate = (products(card, each) * 1e12 * compute_share for each in (size, theirs))
    new = config.batch_size * lengths.completion
    read, learnt = LOGIT_PASSES[_kernels(config, card)]
    batches = max(1, -(-config.batch_size * lengths.total // config.teacher_tokens_at_once))
    # A 4-bit matrix is read, written in the compute dtype and read again, once a micro-batch.
    unpacking = (
        batches * (0.5 + 2 * theirs) * (teacher.linear_elements + sum(teacher.experts)) / bandwidth
        if (config.student_bits if config.teacher == SELF else config.teacher_bits) == 4
        else 0.0
    )

    def moved(shape: Shape, passes: float, size: int) -> float:
        """Seconds that a step's activations take on their way between its products."""
        return passes * size * config.batch_size * lengths.total * shape.linear_widths / bandwidth

    def logits(shape: Shape, passes: float) -> float:
        return passes * 4 * new * shape.head[0] / bandwidth

    scores = flops["score"] / score_rate + logits(teacher, read) + moved(teacher, FORWARD_PASSES, theirs) + unpacking
    forwards = passes(config) + config.recomputes
    update = logits(student, learnt) + moved(student, forwards * FORWARD_PASSES + BACKWARD_PASSES, size)
    return {
        "rollout": flops["rollout"] / rate
        + decode_seconds(config, plan, lengths, config.batch_size, bandwidth, fused_decoder(config, card)),
        "score": 0.0 if config.served else max(scores, plan.host / BUS),  # layers are copied while others compute
        "update": flops["update"] / rate + update,
        "optimizer": 10 * 4 * plan.student.trained / bandwidth + STEP_OVERHEAD,
    }


def itemsize(config: Config) -> int:
    """Returns the bytes of a number in the compute dtype: auto takes one of two on any card."""
    return 4 if config.dtype == "float32" else 2


def products(card: Card, size: int) -> float:
    """Returns a card's products of numbers of `size` bytes, 1e12 a second."""
    return card.float32 if size == 4 else card.tflops


def _kernels(config: Config, card: Card) -> bool:
    return config.kernels != "off" and card.capability >= BFLOAT16


def fused_decoder(config: Config, card: Card) -> bool:
    """Whether a student is decoded by our kernels, which a base in 4 bits, or one in float32, is not."""
    return _kernels(config, card) and config.student_bits == 16 and itemsize(config) == 2


def decode_seconds(
    config: Config, plan: MemoryPlan, lengths: Lengths, lines: int, bandwidth: float, kernels: bool
) -> float:
    """Returns the seconds of reading weights, keys and values for every token of `lines` completions at once."""
    shape = plan.student.shape
    parts = -(-lines // (config.decode_batch_size or lines))
    size = itemsize(config)
    weights = shape.weight_bytes(4 if config.student_bits == 4 else 8 * size, size) + 4 * plan.student.adapter
    cache = shape.cache_bytes(lines, lengths.prompt + lengths.completion // 2, size)
    return lengths.completion * ((parts * weights + cache) / bandwidth + parts * TOKEN_OVERHEAD[kernels])


def evaluation_seconds(config: Config, plan: MemoryPlan, lengths: Lengths, card: Card, bandwidth_share: float) -> float:
    """Returns the estimated seconds of one evaluation: samples and one greedy answer a problem of each benchmark."""
    if not config.evaluates:
        return 0.0
    asked = config.eval_benchmarks
    benchmarks = find_benchmarks(asked, flag="--eval-benchmarks") if asked else []
    problems = config.hold_out + sum(
        min(config.eval_problems, *b.sizes) if b.sizes else config.eval_problems for b in benchmarks
    )
    answers = problems * (config.eval_samples + 1)
    new = min(config.eval_max_new_tokens or config.max_new_tokens, max(lengths.completion, 1))
    batches, rest = divmod(answers, config.eval_batch_size)
    bandwidth = card.bandwidth * 1e9 * bandwidth_share
    at, kernels = Lengths(lengths.prompt, new), fused_decoder(config, card)
    whole = decode_seconds(config, plan, at, config.eval_batch_size, bandwidth, kernels) if batches else 0.0
    return batches * whole + (decode_seconds(config, plan, at, rest, bandwidth, kernels) if rest else 0.0)


def evaluations(config: Config) -> int:
    """Returns how often a run evaluates: before, after, and every `eval_every` steps between."""
    between = (config.steps - 1) // config.eval_every if config.eval_every else 0
    return 2 + between if config.evaluates else 0
