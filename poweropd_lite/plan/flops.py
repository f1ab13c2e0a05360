"""Floating-point operations of a step, a multiplication and an addition counting two: the true ones, and the paper's.

True: every product that this program makes, from the real shapes. A sampled token's probability needs the logits of the
whole vocabulary, so the head's product is made for every reward; query and output projections are heads x head size
wide, in Qwen3 not the hidden size; a frozen matrix has no weight gradient; checkpointing makes the forward twice.

The paper's (PowerOPD, appendix B) counts a forward without its head, takes the hidden size for the query's width, and
three student forwards an update.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poweropd_lite.base.config import Config
from poweropd_lite.rewards.table import passes, reads_rows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from poweropd_lite.models.shape import Shape
    from poweropd_lite.plan.trace import Traced

TERA = 1e12


@dataclass(frozen=True)
class Lengths:
    """Tokens of a typical rollout: those of its prompt, and those that are sampled."""

    prompt: int
    completion: int

    @property
    def total(self) -> int:
        return self.prompt + self.completion


def step_flops(config: Config, student: "Traced", teacher: "Shape", lengths: Lengths) -> dict[str, float]:
    """Returns the operations of one step's rollouts, scores and update."""
    lines, new = config.batch_size, config.batch_size * lengths.completion
    shape, tokens = student.shape, lines * lengths.total
    body, attention = body_flops(shape, lines, lengths.total)
    adapter = 2.0 * student.adapter * tokens
    head, teacher_head = head_flops(shape, new), head_flops(teacher, new)
    rows, mean = reads_rows(config), config.baseline == "own"

    recompute = body + attention + adapter if config.recomputes else 0.0
    # Gradients of activations; of weights, where they are trained. Attention's backward is two forwards.
    backward = body * (2 if config.full_finetune else 1) + 2 * attention + 2 * adapter
    head_trains = config.full_finetune or student.trained > student.adapter
    # A frozen head's logits are made once, a trained one's again in the backward pass.
    head_passes = 4 if head_trains else 2
    update = body + attention + adapter + recompute + backward + head_passes * head
    if rows:  # the teacher's head is multiplied beside the student's
        update += (2 if head_trains and not mean else 1) * teacher_head + mean * head
    update += (passes(config) - 1) * (body + attention + adapter + head)  # of the whole step, before any token is paid
    scoring = sum(body_flops(teacher, lines, lengths.total)) + (0.0 if rows and not mean else teacher_head)
    return {"rollout": body + attention + adapter + head, "score": scoring, "update": update}


def body_flops(shape: "Shape", lines: int, length: int) -> tuple[float, float]:
    """Returns the operations of a forward without the head: of the linear layers, and of causal attention."""
    attention = 2.0 * shape.layers * lines * length**2 * shape.query_width
    return 2.0 * shape.multiplied * lines * length, attention


def head_flops(shape: "Shape", tokens: int) -> float:
    """Returns the operations of the head's product for `tokens` rows."""
    return 2.0 * tokens * shape.head[0] * shape.head[1]


def paper_forward(config: "PretrainedConfig", lines: int, length: int) -> float:
    """Returns appendix B's operations of a forward of B x S tokens: B L (4 S d^2 + 4 S d d_kv + 2 S^2 d + 6 S d m)."""
    d = config.hidden_size
    m = getattr(config, "intermediate_size", None) or 4 * d  # where a config does not say it, as GPT-2's
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    kv = heads * (getattr(config, "head_dim", None) or d // config.num_attention_heads)
    per_layer = 4 * length * d * d + 4 * length * d * kv + 2 * length**2 * d + 6 * length * d * m
    return float(lines * config.num_hidden_layers * per_layer)


def paper_update(teacher: "Shape", student: "Shape", lines: int, lengths: Lengths) -> dict[str, float]:
    """Returns appendix B's table for a pair, TFLOPs: of the "teacher", the "student", an "update" on sampled tokens
    (teacher + 3 student) and over the "full_vocabulary" (the products with both heads besides, 2 B T d_T V and
    3 2 B T d_S V), and the share "saved". Figures are rounded before they are added, as in the paper.
    """
    new = lines * lengths.completion
    t, s = (_as_printed(paper_forward(shape.config, lines, lengths.total)) for shape in (teacher, student))
    heads = [_as_printed(f) for f in (head_flops(teacher, new), 3 * head_flops(student, new))]
    sampled, full = t + 3 * s, t + 3 * s + sum(heads)
    return {"teacher": t, "student": s, "update": sampled, "full_vocabulary": full, "saved": 1 - sampled / full}


def _as_printed(operations: float) -> float:
    """TFLOPs with the paper's one decimal; of small models, which would vanish so, all of them."""
    value = operations / TERA
    return round(value, 1) if value >= 1 else value
