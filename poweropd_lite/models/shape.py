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
from poweropd_lite.base.explained import explained
from poweropd_lite.models.experts import active_share, fused_experts
from poweropd_lite.models.loading import attention_for, load_model_config, model_path
from poweropd_lite.models.saved import largest_rank, saved_settings
from poweropd_lite.models.streamed import decoder_layers
from poweropd_lite.models.whole import no_language_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256  # weights a scale, and scales a scale of scales (bitsandbytes)
_NF4_TABLES = 4 * (16 + 256 + 1)  # a layer's code, the code of its scales and their offset, float32
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM builds its LoRA kernels for
GIB = 2**30
IN_FLIGHT = 8192  # tokens at once of prompts that vLLM reads, which stay with the window that they are behind
BESIDE_WEIGHTS = 2 * GIB  # activations, CUDA graphs and workspaces of a small model
_KNOWN = Path(__file__).parent / "qwen3.json"


def is_the_papers(name: str) -> bool:
    """Whether a model is one of the paper's, whose configs are in the package."""
    return name in json.loads(_KNOWN.read_text(encoding="utf-8")) and not Path(name).exists()


@dataclass(frozen=True)
class Shape:
    """A model's parameters by what they are used for."""

    config: "PretrainedConfig"  # of the text model
    linear: tuple[tuple[int, int], ...]  # (out, in) of every linear layer but the head
    experts: tuple[int, ...]  # elements of every fused parameter of a mixture
    head: tuple[int, int]  # (V, D)
    elements: int  # of all parameters; a tied head counts once
    layer: "Shape | None" = None  # the largest decoder layer, where layers can be streamed
    outside: int = 0  # elements that are in no such layer

    @cached_property
    def linear_elements(self) -> int:
        """Weights of the linear layers."""
        return sum(out * into for out, into in self.linear)

    @cached_property
    def linear_widths(self) -> int:
        """Numbers a token that go into the linear layers and come out of them."""
        return sum(out + into for out, into in self.linear)

    @cached_property
    def multiplied(self) -> float:
        """Weights that a token is multiplied with, but for the head's: of a mixture's experts those it goes through."""
        return self.linear_elements + active_share(self.config) * sum(self.experts)

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
        packed = (*(out * into for out, into in self.linear), *self.experts)
        return rest - computed * sum(self.experts) + sum(map(nf4_bytes, packed))

    @property
    def largest_unpacked(self) -> int:
        """Elements of what is unpacked at once of 4 or 8 bits: a matrix, or all experts of a layer."""
        layers = max(1, self.layers)
        return max(max(out * into for out, into in self.linear), sum(self.experts) // layers)

    def offloaded_bytes(self, bits: int, computed: int = 2) -> tuple[int, int]:
        """Returns the bytes of weights whose layers are streamed: on the device, two layers and the rest, and in the host's memory."""
        assert self.layer is not None
        rest, layer = self.outside * computed, self.layer.weight_bytes(bits, computed)
        return rest + min(2, self.layers) * layer, self.weight_bytes(bits, computed) - rest

    def cache_bytes(self, lines: int, length: int, itemsize: int) -> int:
        """Returns the bytes of keys and values of `lines` completions of `length` tokens, prompts counted."""
        window = getattr(self.config, "sliding_window", None) or length
        columns = {
            "sliding_attention": min(length, window),
            "linear_attention": 0,
            "conv": 0,
        }  # states that do not grow: 0
        return (
            2 * sum(columns.get(kind, length) for kind in layer_kinds(self.config)) * self.kv_width * lines * itemsize
        )


def layer_kinds(text_config: "PretrainedConfig") -> list[str]:
    """Returns the kind of every layer, as configs call them; one that names a window and no kinds has it in every layer."""
    windowed = getattr(text_config, "use_sliding_window", True) and getattr(text_config, "sliding_window", None)
    every = "sliding_attention" if windowed else "full_attention"
    return list(getattr(text_config, "layer_types", None) or [every] * text_config.num_hidden_layers)


def nf4_bytes(elements: int) -> int:
    """Returns what bitsandbytes stores of a matrix in NF4 with double quantisation: two weights a byte, a byte of scale for 64
    of them, and four bytes for 256 scales.
    """
    blocks = math.ceil(elements / NF4_BLOCK)
    return math.ceil(elements / 2) + blocks + 4 * math.ceil(blocks / NF4_NESTED_BLOCK) + _NF4_TABLES


def read_config(name: str, role: str, remote_code: bool = False) -> "PretrainedConfig":
    """Returns a model's config: from the package for the paper's models, else as a run reads it; raises UserError."""
    if is_the_papers(name):
        from transformers import AutoConfig

        return AutoConfig.for_model(**json.loads(_KNOWN.read_text(encoding="utf-8"))[name])
    return load_model_config(name, role, remote_code)[0]


def read_shape(name: str, role: str, remote_code: bool = False) -> Shape:
    """Returns the shape of a model by its name; raises UserError."""
    return shape_of(empty_model(read_config(name, role, remote_code), torch.bfloat16, remote_code))


def empty_model(model_config: "PretrainedConfig", dtype: torch.dtype, remote_code: bool = False) -> "PreTrainedModel":
    """Returns the model on the meta device: shapes and no memory."""
    from transformers import AutoModelForCausalLM

    name = model_config.name_or_path or model_config.model_type
    what, mend = f"no causal language model by the config of '{name}'", "take another model, or mend its config.json"
    if fault := no_language_model(model_config):
        raise UserError(f"{what}: {fault}")
    attention = attention_for(model_config.get_text_config())
    with explained(what, None, mend), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            model_config, dtype=dtype, attn_implementation=attention, trust_remote_code=remote_code
        )


def shape_of(model: "PreTrainedModel") -> Shape:
    """Returns the shape of a model, on whatever device."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, [in, out]

    head, config = model.get_output_embeddings(), model.config.get_text_config()

    def of(module: torch.nn.Module, layer: Shape | None = None, outside: int = 0) -> Shape:
        linear = []
        for m in module.modules():
            if isinstance(m, Conv1D):
                linear.append((m.nf, m.nx))
            elif isinstance(m, torch.nn.Linear) and m is not head:
                linear.append((m.out_features, m.in_features))
        experts = tuple(getattr(holder, name).numel() for holder, name in fused_experts(module).values())
        return Shape(config, tuple(linear), experts, tuple(head.weight.shape), _elements(module), layer, outside)

    layers = decoder_layers(model)
    if not layers:
        return of(model)
    return of(model, of(max(layers, key=_elements)), _elements(model) - _elements(layers))


def _elements(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


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
    rank = config.lora_rank if config.adapter is None else largest_rank(saved_settings(Path(config.adapter)))
    return Served(model, config.longest_rollout, lines, most, rank, config.trust_remote_code, config.seed)


def lora_rank_limit(rank: int) -> int:
    """Returns the smallest rank that vLLM supports and that holds `rank`; raises UserError above its largest."""
    for limit in LORA_RANKS:
        if rank <= limit:
            return limit
    raise UserError(
        f"vLLM serves adapters of rank {LORA_RANKS[-1]} at most; type --lora-rank {LORA_RANKS[-1]} or --engine loop"
    )


def cache_bytes(shape: Shape, served: Served, dtype: torch.dtype) -> int:
    """Returns the bytes of keys, values and states of `served.lines` of the longest completions, in vLLM's blocks.

    All are of one size: 16 tokens (the CPU build's 128), or as many as a layer's recurrent state has bytes for.
    """
    config, kinds = shape.config, layer_kinds(shape.config)
    token = 2 * shape.kv_width * dtype.itemsize
    window = (getattr(config, "sliding_window", None) or served.longest) + IN_FLIGHT
    states = "linear_attention" in kinds
    block = math.ceil(state_bytes(config, dtype.itemsize) / token) + 128 if states else 128
    columns = {"sliding_attention": min(served.longest, window) + block, "linear_attention": block}
    return served.lines * token * sum(columns.get(kind, served.longest + block) for kind in kinds)


def state_bytes(config: "PretrainedConfig", itemsize: int) -> int:
    """Returns the bytes that vLLM keeps of a gated linear attention, of one line in one layer: recurrence and convolution."""
    if not hasattr(config, "linear_num_key_heads"):  # another kind's, which is not known here
        return 0
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    wide = 4 if getattr(config, "mamba_ssm_dtype", None) == "float32" else itemsize
    return wide * values * config.linear_key_head_dim + itemsize * (2 * keys + values) * (
        config.linear_conv_kernel_dim - 1
    )


def memory_share(served: Served, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the share of the card's memory that vLLM may use beside a student that learns, 0 to 1."""
    shape = read_shape(served.model, "student", served.remote_code)
    need = shape.weight_bytes(8 * dtype.itemsize) + cache_bytes(shape, served, dtype) + BESIDE_WEIGHTS
    return round(min(0.9, need / torch.cuda.mem_get_info(device)[1]), 3)
