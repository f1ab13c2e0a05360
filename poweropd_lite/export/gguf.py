"""GGUF for llama.cpp and Ollama: one file with merged weights, tokenizer, chat template and stop tokens.

Written with the gguf package (writer, tensor names, quantisers) for the models in ARCHITECTURES. Other kinds are made
of that file by llama.cpp's quantiser, other models converted by llama.cpp (llama_cpp.py). Read back and asked by
transformers' GGUF loader.
"""

import math
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from poweropd_lite.base.errors import UserError
from poweropd_lite.export.check import Tick, check_equal, check_names
from poweropd_lite.export.gguf_vocab import add_vocabulary, pre_tokenizer, write_modelfile
from poweropd_lite.export.job import Job
from poweropd_lite.export.llama_cpp import convert, quantise
from poweropd_lite.export.settings import OWN_GGUF
from poweropd_lite.export.source import Source, device
from poweropd_lite.models.loading import attention_for
from poweropd_lite.models.probe import Probe
from poweropd_lite.models.shape import layer_kinds

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


# GGUF's names by transformers' model_type: a Mistral without a window is a Llama.
ARCHITECTURES = {"qwen3": "qwen3", "qwen3_moe": "qwen3moe", "qwen2": "qwen2", "llama": "llama", "mistral": "llama"}
ROPE_FREQS = "rope_freqs.weight"
_HALF_LARGEST = 65504.0  # of float16


@dataclass(frozen=True)
class Entry:
    """A tensor of the file."""

    origin: str  # the merged model's name for it
    shape: tuple[int, ...]
    kind: Any  # gguf's name for its encoding
    half: int | None = None  # of a mixture's gate and up in one: 0 is the gate


def unfit(c: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Returns why a model's GGUF file can't be written by this file, or None."""
    if c.model_type not in ARCHITECTURES:
        return f"its type is {c.model_type}, and {', '.join(ARCHITECTURES)} are known"
    rope = c.rope_parameters or {}
    if rope.get("rope_type", "default") not in ("default", "llama3"):
        return f"its positions are of type {rope['rope_type']}, and default and llama3 are known"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates a part of each head"
    if any(kind != "full_attention" for kind in layer_kinds(c)):
        return "some of its layers have a sliding window"
    if c.hidden_act != "silu":
        return f"its activation is {c.hidden_act}, and silu is known"
    if c.model_type == "llama" and (getattr(c, "attention_bias", False) or getattr(c, "mlp_bias", False)):
        return "its linear layers have biases"
    if c.model_type == "qwen3_moe" and (c.mlp_only_layers or c.decoder_sparse_step != 1 or not c.norm_topk_prob):
        return "some of its layers have no experts, or its experts' weights don't add up to 1 (norm_topk_prob)"
    return pre_tokenizer(tokenizer)[1]


def export_gguf(job: Job, folder: Path, source: Source, tick: Tick) -> tuple[Probe, int | None]:
    """Writes the GGUF file and Ollama's Modelfile; returns what the file says and the tensors read back, if any."""
    kind, checked = job.config.gguf_kind, None
    file, checkout = folder / f"model-{kind}.gguf", Path(job.config.llama_cpp or "").resolve()
    if job.config.llama_cpp is not None and unfit(job.model_config, job.vocabulary.tokenizer) is not None:
        convert(job, checkout, file, source, tick)
    elif kind in OWN_GGUF:
        checked = write_gguf(job, file, source, kind, tick)
    else:
        whole = file.with_name(".whole.gguf")
        checked = write_gguf(job, whole, source, "f32", tick)
        quantise(checkout, kind, whole, file)
    write_modelfile(job, folder, file.name)
    return probe_gguf(job, file, source), checked


def write_gguf(job: Job, file: Path, source: Source, kind: str, tick: Tick) -> int:
    """Writes metadata, vocabulary and tensors, one at a time in memory, and reads them back; returns how many.

    Raises UserError for a tensor that is not, byte for byte, what the merge gives.
    """
    import gguf

    entries, settings = _entries(job, source, kind), _settings(job, kind)
    architecture = ARCHITECTURES[job.model_config.model_type]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name(job.name)
    for name, value in settings.items():
        add: Any = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(name, value)
    vocabulary = add_vocabulary(writer, job)
    for name, entry in entries.items():
        size = math.prod(gguf.quant_shape_to_byte_shape(entry.shape, entry.kind))
        writer.add_tensor_info(name, entry.shape, np.dtype(np.float32), size, raw_dtype=entry.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, entry in enumerate(entries.values(), 1):
        writer.write_tensor_data(_encoded(job, source, entry))
        tick("writing", done, len(entries))
    writer.close()

    try:
        reader = gguf.GGUFReader(file)
        written = {tensor.name: tensor for tensor in reader.tensors}
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"the GGUF file can't be read back: {error}; is the disk sound?") from None
    named = {"general.architecture": architecture, "general.name": job.name}
    for name, value in (named | settings | vocabulary).items():
        if values.get(name) != (float(np.float32(value)) if isinstance(value, float) else value):
            raise UserError(f"{name} was read back from the GGUF file as {str(values.get(name))[:100]}, which is wrong")
    check_names(set(written), set(entries))
    for done, (name, entry) in enumerate(entries.items(), 1):
        data = written[name].data.reshape(-1).view(np.uint8)
        check_equal(name, np.array_equal(data, _encoded(job, source, entry)))
        tick("reading back", done, len(entries))
    return len(entries)


def probe_gguf(job: Job, file: Path, source: Source) -> Probe:
    """Returns what transformers' GGUF loader makes of a file, by the base's config, which it would not read whole."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    of: Any = type(job.model_config)
    if of.model_type == "mistral":  # which transformers does not know in a GGUF file
        of = LlamaConfig
    config = of.from_dict(job.model_config.to_dict() | {"model_type": of.model_type})
    config.tie_word_embeddings = source.tied
    # 16 bits hold what the file does: exactly for f16 and bf16, to far below a step of a quantised kind.
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}.get(job.config.gguf_kind, torch.float16)
    try:
        with redirect_stderr(StringIO()):  # a progress bar that transformers' settings don't reach
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, config=config, dtype=dtype, output_loading_info=True
            )
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"transformers can't load the GGUF file back ({reason}), so it can't be proven, and nothing was handed "
            "over; type --to merged-16bit and convert that yourself"
        ) from None
    model, info = loaded
    if odd := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise UserError(
            f"the GGUF file lacks {len(odd)} tensors of the model, for one {odd[0]}; nothing was handed over"
        )
    if (attention := attention_for(model.config)) != "sdpa":
        model.set_attn_implementation(attention)
    return source.ask(model.to(device()))


def _settings(job: Job, kind: str) -> dict[str, int | float]:
    """What a reader must know of the model, by GGUF's names, in the file's order: uint32 and float32."""
    import gguf

    c, head = job.model_config, _head_size(job)
    numbers = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": float((c.rope_parameters or {}).get("rope_theta", 10000.0)),
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
        "vocab_size": c.vocab_size,
    }
    if c.model_type == "qwen3_moe":
        numbers |= {
            "expert_count": c.num_experts,
            "expert_used_count": c.num_experts_per_tok,
            "expert_feed_forward_length": c.moe_intermediate_size,
        }
    return {
        "general.file_type": int(gguf.LlamaFileType[f"{'ALL' if kind == 'f32' else 'MOSTLY'}_{kind.upper()}"]),
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
        **{f"{ARCHITECTURES[c.model_type]}.{name}": value for name, value in numbers.items()},
    }


def _head_size(job: Job) -> int:
    c = job.model_config
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def _entries(job: Job, source: Source, kind: str) -> dict[str, Entry]:
    """Returns the file's tensors by their names in it, in the model's order.

    Vectors stay float32, and a router; a matrix whose rows are no whole number of q8_0's blocks of 32 is float16, as
    llama.cpp has it.
    """
    import gguf

    c, kinds = job.model_config, gguf.GGMLQuantizationType
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[c.model_type])
    names = gguf.get_tensor_name_map(arch, c.num_hidden_layers)
    shapes = {origin: shape for origin, (_, shape) in source.tensors.items()}
    if (c.rope_parameters or {}).get("rope_type") == "llama3":
        shapes[ROPE_FREQS] = (_head_size(job) // 2,)
    entries = {}
    for origin, shape in shapes.items():
        parts: dict[str, int | None] = {origin: None}
        if origin.endswith(".mlp.experts.gate_up_proj"):
            parts = {
                origin.replace("gate_up_proj", f"{part}_proj.weight"): half for half, part in enumerate(("gate", "up"))
            }
            shape = (shape[0], shape[1] // 2, shape[2])
        elif origin.endswith(".mlp.experts.down_proj"):
            parts = {f"{origin}.weight": None}
        for part, half in parts.items():
            name = ROPE_FREQS if part == ROPE_FREQS else names.get_name(part, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise UserError(
                    f"GGUF has no name for {part}; type --llama-cpp with the folder of a llama.cpp checkout"
                )
            uneven = kind == "q8_0" and shape[-1] % 32
            exact = len(shape) == 1 or origin.endswith(".mlp.gate.weight")
            encoding = kinds.F32 if exact else kinds.F16 if uneven else kinds[kind.upper()]
            entries[name] = Entry(origin, shape, encoding, half)
    return entries


def _encoded(job: Job, source: Source, entry: Entry) -> np.ndarray:
    """Returns the bytes of a tensor of the merged model in the file's encoding."""
    import gguf

    origin, start = entry.origin, 0
    if origin == ROPE_FREQS:
        return _rope_factors(job).view(np.uint8)
    if ARCHITECTURES[job.model_config.model_type] == "llama" and origin.endswith(("q_proj.weight", "k_proj.weight")):
        blocks = iter([_interleaved(torch.cat(list(source.blocks(origin))), job, origin)])
    else:
        blocks = source.blocks(origin)
    out = np.empty(math.prod(gguf.quant_shape_to_byte_shape(entry.shape, entry.kind)), dtype=np.uint8)
    for block in blocks:
        values = block.numpy()
        if entry.half is not None:
            values = np.ascontiguousarray(np.split(values, 2, axis=1)[entry.half])
        if entry.kind is gguf.GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > _HALF_LARGEST:
            raise UserError(f"{origin} has numbers that f16 can't hold; type --gguf-type bf16")
        packed = gguf.quantize(values, entry.kind).view(np.uint8).reshape(-1)
        out[start : start + len(packed)] = packed
        start += len(packed)
    return out


def _interleaved(weight: torch.Tensor, job: Job, origin: str) -> torch.Tensor:
    """llama.cpp rotates neighbouring rows of a Llama head together, transformers row i and row i + half."""
    c = job.model_config
    heads = c.num_attention_heads if origin.endswith("q_proj.weight") else c.num_key_value_heads
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def _rope_factors(job: Job) -> np.ndarray:
    """What llama3 scaling divides each frequency by, float32 [head size / 2]."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    c, size = job.model_config, _head_size(job)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](c, "cpu")
    plain = c.rope_parameters["rope_theta"] ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    return (plain / scaled.numpy().astype(np.float64)).astype(np.float32)
