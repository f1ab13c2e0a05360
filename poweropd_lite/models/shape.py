"""A causal LM without its weights: what its config alone says of bytes and products, and of what vLLM takes for it.

The model is built on torch's meta device by transformers itself, so its parameters are those that a run would load. The
configs of the paper's models are in the package; any other is the one file that is downloaded.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.models.loading import load_model_config, model_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256  # weights a scale, and scales a scale of scales (bitsandbytes)
_NF4_TABLES = 4 * (16 + 256 + 1)  # a layer's code, the code of its scales and their offset, float32
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM builds its LoRA kernels for
GIB = 2**30
BESIDE_WEIGHTS = 2 * GIB  # activations, CUDA graphs and workspaces of a small model
_KNOWN = Path(__file__).parent / "qwen3.json"


@dataclass(frozen=True)
class Shape:
    """A model's parameters by what they are used for."""

    config: "PretrainedConfig"  # of the text model
    linear: tuple[tuple[int, int], ...]  # (out, in) of every linear layer but the head
    head: tuple[int, int]  # (V, D)
    elements: int  # of all parameters; a tied head counts once

    @cached_property
    def linear_elements(self) -> int:
        """Weights of the linear layers."""
        return sum(out * into for out, into in self.linear)

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return self.config.num_hidden_layers

    @property
    def query_width(self) -> int:
        """Query heads times their size; Qwen3's is not the hidden size."""
        return self.config.num_attention_heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Key heads times their size."""
        return (getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads) * self.head_size

    @property
    def head_size(self) -> int:
        """The size of a head."""
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    def weight_bytes(self, bits: int, computed: int = 2) -> int:
        """Returns the bytes of the weights at 32, 16, 8 (LLM.int8) or 4 bits (NF4, double quantisation).

        At 8 and 4 bits the embedding, the norms and the head stay in the compute dtype, of `computed` bytes.
        """
        if bits >= 16:
            return self.elements * bits // 8
        rest = computed * (self.elements - self.linear_elements)
        if bits == 8:  # a byte a weight and a float32 scale a row
            return rest + sum(out * into + 4 * out for out, into in self.linear)
        return rest + sum(nf4_bytes(out * into) for out, into in self.linear)

    def cache_bytes(self, lines: int, length: int, itemsize: int) -> int:
        """Returns the bytes of keys and values of `lines` completions of `length` tokens, prompts counted."""
        return 2 * self.layers * self.kv_width * lines * length * itemsize


def nf4_bytes(elements: int) -> int:
    """Returns what bitsandbytes stores of a matrix in NF4 with double quantisation: two weights a byte, a byte of scale for 64
    of them, and four bytes for 256 scales.
    """
    blocks = math.ceil(elements / NF4_BLOCK)
    return math.ceil(elements / 2) + blocks + 4 * math.ceil(blocks / NF4_NESTED_BLOCK) + _NF4_TABLES


def read_config(name: str, role: str, remote_code: bool = False) -> "PretrainedConfig":
    """Returns a model's config: from the package for the paper's models, else as a run reads it; raises UserError."""
    known = json.loads(_KNOWN.read_text(encoding="utf-8"))
    if name in known and not Path(name).exists():
        from transformers import AutoConfig

        return AutoConfig.for_model(**known[name])
    return load_model_config(name, role, remote_code)[0]


def read_shape(name: str, role: str, remote_code: bool = False) -> Shape:
    """Returns the shape of a model by its name; raises UserError."""
    return shape_of(empty_model(read_config(name, role, remote_code), torch.bfloat16, remote_code))


def empty_model(model_config: "PretrainedConfig", dtype: torch.dtype, remote_code: bool = False) -> "PreTrainedModel":
    """Returns the model on the meta device: shapes and no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            model_config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=remote_code
        )


def shape_of(model: "PreTrainedModel") -> Shape:
    """Returns the shape of a model, on whatever device."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, [in, out]

    head = model.get_output_embeddings()
    linear = []
    for m in model.modules():
        if isinstance(m, Conv1D):
            linear.append((m.nf, m.nx))
        elif isinstance(m, torch.nn.Linear) and m is not head:
            linear.append((m.out_features, m.in_features))
    elements = sum(p.numel() for p in model.parameters())
    return Shape(model.config.get_text_config(), tuple(linear), tuple(head.weight.shape), elements)


@dataclass(frozen=True)
class Served:
    """What a vLLM is to hold."""

    model: str  # folder or hub id
    longest: int  # tokens that a prompt and its completion may have
    lines: int  # completions that keys and values are there for
    most_lines: int  # completions at once: what finds no room waits
    lora_rank: int | None  # of the adapter that is sent to it; None: the weights are whole
    remote_code: bool = False
    seed: int = 0


def served_run(config: Config) -> Served:
    """Returns what the vLLM of a run is to hold."""
    lines = config.decode_batch_size or config.batch_size
    most = config.decode_batch_size or max(config.batch_size, min(config.eval_batch_size, 4 * config.batch_size))
    model = model_path(config.student, "student")
    return Served(model, config.longest_rollout, lines, most, config.lora_rank, config.trust_remote_code, config.seed)


def lora_rank_limit(rank: int) -> int:
    """Returns the smallest rank that vLLM supports and that holds `rank`; raises UserError above its largest."""
    for limit in LORA_RANKS:
        if rank <= limit:
            return limit
    raise UserError(
        f"vLLM serves adapters of rank {LORA_RANKS[-1]} at most; type --lora-rank {LORA_RANKS[-1]} or --engine loop"
    )


def cache_bytes(shape: Shape, served: Served, dtype: torch.dtype) -> int:
    """Returns the bytes of keys and values of `served.lines` of the longest completions, in vLLM's blocks of 16 tokens."""
    # One block more a completion, and 128 of vLLM's own: the CPU build's blocks are of 128 tokens.
    return shape.cache_bytes(served.lines, served.longest + 128, dtype.itemsize)


def memory_share(served: Served, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the share of the card's memory that vLLM may use beside a student that learns, 0 to 1."""
    shape = read_shape(served.model, "student", served.remote_code)
    need = shape.weight_bytes(8 * dtype.itemsize) + cache_bytes(shape, served, dtype) + BESIDE_WEIGHTS
    return round(min(0.9, need / torch.cuda.mem_get_info(device)[1]), 3)
