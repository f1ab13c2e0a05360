"""Next-token log-probs on a few fixed texts: what tells one model from another, whatever file it came from.

Training writes those of the live student beside its adapter (`reference.json`); export compares every model it makes with
them. All arithmetic is float32, with weights of any type widened a few rows at a time, so that what differs between two
models is their weights and not how their products were rounded.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import read_json
from poweropd_lite.models.loading import final_hidden, head_of, unwrapped
from poweropd_lite.problems.prompts import prompt_text

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from poweropd_lite.models.merge import Change

REFERENCE = "reference.json"  # its file, beside an adapter
TOP = 8  # log-probs that are compared at each position: of the likeliest tokens of the model compared with
LONGEST = 64  # tokens of a text
_ROWS = 1 << 22  # weight elements that are widened at a time: 16 MiB of float32
_POSITIONS = 32  # whose logits are there at a time
_HALF = (torch.bfloat16, torch.float16)
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
_TEXTS = (
    ("What is 12 * (7 - 3) + 5?", "First 7 - 3 = 4, then 12 * 4 = 48, and 48 + 5 = 53. The answer is \\boxed{53}."),
    ("Tom has 8 apples and buys 7 more. How many has he?", "He has 8 + 7 = 15 apples. \\boxed{15}"),
    ("Find the remainder of 47 divided by 6.", "47 = 6 * 7 + 5, so the remainder is \\boxed{5}."),
    ("Solve 3x + 2 = 17 for x.", "Subtract 2: 3x = 15. Divide by 3: x = 5. \\boxed{5}"),
    ("What is the sum of the first 10 positive integers?", "It is 10 * 11 / 2 = 55, so the answer is \\boxed{55}."),
    ("Compute 3 + 4 * 6.", "4 * 6 = 24. 3 + 24 = 27. The answer is \\boxed{27}."),
)


@dataclass(frozen=True)
class Probe:
    """What a model says: of T texts, at each position the ids of the likeliest next tokens and their log-probs, nats."""

    texts: list[list[int]]
    ids: list[list[list[int]]]  # [T][length][TOP]
    logprobs: list[list[list[float]]]  # of those ids
    arithmetic: str = "float32"  # or the dtype that the trainer computed in
    base_bits: int = 16  # of the weights that the adapter was on
    base_dtype: str = "float32"  # and their dtype, if they were not of 4 bits

    def write(self, folder: Path) -> None:
        """Writes reference.json into a folder."""
        (folder / REFERENCE).write_text(json.dumps(asdict(self), allow_nan=False) + "\n", encoding="utf-8")

    @property
    def values(self) -> Tensor:
        """All log-probs, [N] float64."""
        return torch.tensor([x for text in self.logprobs for row in text for x in row], dtype=torch.float64)


def read_reference(folder: Path) -> Probe | None:
    """Returns what training wrote beside an adapter, or None; raises UserError for a file that can't be read."""
    file = folder / REFERENCE
    if not file.is_file():
        return None
    try:
        probe = Probe(**read_json(file))
        sizes = [[len(row) for row in text] for text in probe.ids]
        same = sizes == [[len(row) for row in text] for text in probe.logprobs]
        if not same or [len(text) for text in probe.texts] != [len(text) for text in probe.ids]:
            raise ValueError("its lists do not fit each other")
        if not probe.values.isfinite().all():
            raise ValueError("it holds numbers that are not finite")
        return probe
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} can't be read: {error}; it holds what training saw of this adapter. Put the file back, or remove it to "
            "export without that check"
        ) from None


def probe_texts(tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Returns the fixed texts as ids: a question in the model's chat template (or plain) and the beginning of an answer.

    Raises TemplateFault for a template that can't render a question.
    """
    texts = []
    for question, answer in _TEXTS:
        prompt: Any = question + "\n"
        if tokenizer.chat_template:
            prompt = prompt_text([{"role": "user", "content": question}], tokenizer, {"enable_thinking": False})
        texts.append(tokenizer(prompt + answer, add_special_tokens=False)["input_ids"][:LONGEST])
    return texts


@torch.no_grad()
def probe(
    model: "PreTrainedModel | PeftModel",
    texts: Sequence[Sequence[int]],
    like: Probe | None = None,
    changes: "dict[tuple[str, int], Change] | None" = None,
    arithmetic: Any = None,
) -> Probe:
    """Returns what `model` says on `texts`, at the ids of `like` or else at its own likeliest.

    `changes` (merge.Change by how a weight is used, "linear" or "embedding", and its id()) are merged into the weights as
    they are read. `arithmetic` is the context to compute in, if not float32.
    """
    longest = max(map(len, texts))
    # One batch, so that every weight is widened once; no token sees the padding behind it.
    batch = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=model.device)
    ids, logprobs = [], []
    with _to_be_asked(model), arithmetic or Float32Arithmetic(changes or {}):
        hidden = final_hidden(model, batch)
        head, bend = unwrapped(model).get_output_embeddings(), head_of(model).bend
        for i, text in enumerate(texts):
            parts = hidden[i, : len(text)].split(_POSITIONS)
            asked = None if like is None else like.ids[i]
            found = [_likeliest(bend(head(part).float()), asked, n) for n, part in enumerate(parts)]
            ids.append([row for part, _ in found for row in part])
            logprobs.append([[round(x, 7) for x in row] for _, part in found for row in part])
    return Probe([list(text) for text in texts], ids, logprobs, "float32" if arithmetic is None else str(model.dtype))


def noise(model: "PreTrainedModel | PeftModel", said: Probe) -> tuple[float, float]:
    """Returns what float32 sums alone move in what `model` said, nats, mean and largest: of one text, against float64 sums."""
    one = Probe(said.texts[:1], said.ids[:1], said.logprobs[:1])
    gap = (probe(model, one.texts, one, arithmetic=Float32Arithmetic({}, torch.float64)).values - one.values).abs()
    return gap.mean().item(), gap.max().item()


def _likeliest(logits: Tensor, ids: list[list[int]] | None, part: int) -> tuple[list[list[int]], list[list[float]]]:
    said = logits.log_softmax(-1)
    if not said.isfinite().all():
        raise UserError("the model gives log-probs that are not finite numbers: its weights are damaged")
    if ids is None:
        at = said.topk(min(TOP, said.shape[-1])).indices
    else:
        at = torch.tensor(ids[part * _POSITIONS : part * _POSITIONS + len(said)], device=said.device)
    return at.tolist(), said.gather(-1, at).tolist()


class Float32Arithmetic(TorchFunctionMode):
    """A context in which products with half-precision weights are of float32, with `changes` merged into the weights.

    `sums` float64 is for the noise of float32: every product is then summed in it, and rounded once.
    """

    def __init__(self, changes: "dict[tuple[str, int], Change]", sums: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.changes, self.sums = changes, sums

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        weight: Any = args[1] if len(args) > 1 else kwargs.get("weight")
        if func is F.linear and type(weight) in (Tensor, torch.nn.Parameter) and weight.dim() == 2:
            change = self.changes.get(("linear", id(weight)))
            if weight.dtype in _HALF or change is not None or self.sums != torch.float32:
                return _linear(change, self.sums, *args, **kwargs)
        if func in _PRODUCTS and args[0].dtype == torch.float32 and args[1].dtype in _HALF:  # Falcon's linear layers
            return func(args[0], args[1].float(), **kwargs)
        if func is F.layer_norm:  # whose weights are of its input's dtype
            dtype, call = args[0].dtype, cast(Any, func)
            own = [t.to(dtype) if isinstance(t, Tensor) else t for t in args]
            return call(*own, **{k: t.to(dtype) if isinstance(t, Tensor) else t for k, t in kwargs.items()})
        if func is F.embedding:
            change = self.changes.get(("embedding", id(args[1])))
            rows = func(*args, **kwargs).float()
            return rows if change is None else change.rows(rows.flatten(0, -2), args[0].flatten()).view_as(rows)
        return func(*args, **kwargs)


def _linear(
    change: "Change | None", sums: torch.dtype, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """`input` [..., D] times weight [V, D] transposed, float32, summed in `sums`, a few rows of the weight at a time."""
    out = input.new_empty(*input.shape[:-1], weight.shape[0], dtype=torch.float32)
    step = max(1, _ROWS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        rows = slice(start, min(start + step, weight.shape[0]))
        wide = weight[rows].float()
        wide = wide if change is None else change.rows(wide, rows)
        out[..., rows] = (input.to(sums) @ wide.to(sums).T).float()
    return out if bias is None else out + bias.float()


@contextmanager
def _to_be_asked(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """A context in which a model is in eval mode and computes without TF32, its 4-bit layers in float32."""
    training, precision = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")
    quantised: list[Any] = [m for m in model.modules() if hasattr(m, "compute_type_is_set")]
    before = [(m.compute_dtype, m.compute_type_is_set) for m in quantised]
    for layer in quantised:
        layer.compute_dtype, layer.compute_type_is_set = torch.float32, True
    try:
        yield
    finally:
        model.train(training)
        torch.set_float32_matmul_precision(precision)
        for layer, was in zip(quantised, before, strict=True):
            layer.compute_dtype, layer.compute_type_is_set = was
