"""GGUF for llama.cpp and Ollama: one file with the merged weights, the tokenizer, the chat template and the stop tokens.

Written with the gguf package (writer, tensor names, quantisers) for Qwen3, Qwen2 and Llama. Other kinds of weights are made
of that file by llama.cpp's quantiser, other models converted by llama.cpp (llama_cpp.py). Read back and asked by
transformers' GGUF loader.
"""

import math
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError
from poweropd_lite.export.folders import Tick
from poweropd_lite.export.gguf_vocab import add_vocabulary, pre_tokenizer, stops
from poweropd_lite.export.job import Job
from poweropd_lite.export.llama_cpp import check_checkout, convert, quantise
from poweropd_lite.export.modelfile import write_modelfile
from poweropd_lite.export.settings import OWN_GGUF, ExportConfig
from poweropd_lite.export.source import Source, device
from poweropd_lite.models.probe import Probe, probe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


ARCHITECTURES = ("qwen3", "qwen2", "llama")  # transformers' model_type, and GGUF's name for the same
ROPE_FREQS = "rope_freqs.weight"
_HALF_LARGEST = 65504.0  # of float16


def check_gguf(config: ExportConfig, model_config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises UserError for a model that neither this file nor the given llama.cpp checkout can write."""
    if config.llama_cpp is not None:
        check_checkout(config)
        return
    fault = unfit(model_config, tokenizer)
    if fault is not None:
        raise UserError(
            f"the GGUF file of this model can't be written here: {fault}; type --llama-cpp with the folder of a llama.cpp checkout, "
            "whose converter knows more models"
        )


def unfit(c: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Returns why a model's GGUF file can't be written by this file, or None."""
    if c.model_type not in ARCHITECTURES:
        return f"its type is {c.model_type}, and {', '.join(ARCHITECTURES)} are known"
    rope = c.rope_parameters or {}
    if rope.get("rope_type", "default") not in ("default", "llama3"):
        return f"its positions are of type {rope['rope_type']}, and default and llama3 are known"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates a part of each head"
    if any(kind != "full_attention" for kind in getattr(c, "layer_types", None) or []):
        return "some of its layers have a sliding window"
    if c.hidden_act != "silu":
        return f"its activation is {c.hidden_act}, and silu is known"
    if c.model_type == "llama" and (getattr(c, "attention_bias", False) or getattr(c, "mlp_bias", False)):
        return "its linear layers have biases"
    return pre_tokenizer(tokenizer)[1]


def export_gguf(job: Job, folder: Path, source: Source, tick: Tick) -> tuple[Probe, int | None]:
    """Writes the GGUF file and Ollama's Modelfile; returns what the file says, and how many tensors were read back equal, if any were."""
    file = folder / f"model-{job.gguf_type}.gguf"
    own = job.gguf_type in OWN_GGUF
    if job.config.llama_cpp is not None and unfit(job.model_config, job.vocabulary.tokenizer) is not None:
        convert(job, file, source, tick)
        checked = None
    elif own:
        write_gguf(job, file, source, tick)
        checked = check_gguf_file(job, file, source, tick)
    else:
        whole = file.with_name(".whole.gguf")
        wide = replace(job, config=changed(job.config, gguf_type="f32"))
        write_gguf(wide, whole, source, tick)
        checked = check_gguf_file(wide, whole, source, tick)
        quantise(job, whole, file)
    write_modelfile(job, folder, file.name)
    return probe_gguf(job, file, source), checked


def write_gguf(job: Job, file: Path, source: Source, tick: Tick) -> None:
    """Writes metadata, vocabulary and tensors; no more than one tensor is in memory."""
    import gguf

    config = job.model_config
    writer = gguf.GGUFWriter(file, config.model_type)
    _add_settings(writer, job)
    add_vocabulary(writer, job, rows=config.vocab_size)
    tensors = _tensors(job, source)
    for name, origin in tensors.items():
        shape = _shape(origin, source, job)
        kind = _kind(job, shape)
        packed = gguf.quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(packed), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, origin in enumerate(tensors.values(), 1):
        writer.write_tensor_data(_encoded(job, source, origin))
        tick("writing", done, len(tensors))
    writer.close()


def check_gguf_file(job: Job, file: Path, source: Source, tick: Tick) -> int:
    """Returns how many tensors of a written file are, byte for byte, what the merge gives; raises UserError for others."""
    import gguf

    tensors = _tensors(job, source)
    try:
        reader = gguf.GGUFReader(file)
        written = {tensor.name: tensor for tensor in reader.tensors}
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"the GGUF file can't be read back: {error}; is the disk sound?") from None
    wrong = [name for name, value in _expected(job).items() if values.get(name) != value]
    if wrong:
        raise UserError(
            f"{wrong[0]} was read back from the GGUF file as {str(values.get(wrong[0]))[:100]}, which is wrong"
        )
    if set(written) != set(tensors):
        odd = sorted(set(written) ^ set(tensors))
        raise UserError(f"the GGUF file has other tensors than the merge ({len(odd)}, for one {odd[0]})")
    for done, (name, origin) in enumerate(tensors.items(), 1):
        expected = _encoded(job, source, origin)
        if not np.array_equal(written[name].data.reshape(-1).view(np.uint8), expected.reshape(-1).view(np.uint8)):
            raise UserError(
                f"{name} was read back from the disk as other numbers than were written; is the disk sound?"
            )
        tick("reading back", done, len(tensors))
    return len(tensors)


def probe_gguf(job: Job, file: Path, source: Source) -> Probe:
    """Returns what transformers' GGUF loader makes of a file; the config is the base's, for that loader does not read it whole."""
    from transformers import AutoModelForCausalLM

    config = type(job.model_config).from_dict(job.model_config.to_dict())
    config.tie_word_embeddings = source.tied
    # 16 bits hold what the file does: exactly for f16 and bf16, to far below a step of a quantised kind.
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}.get(job.gguf_type, torch.float16)
    try:
        with redirect_stderr(StringIO()):  # a progress bar that transformers' settings don't reach
            model, info = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, config=config, dtype=dtype, output_loading_info=True
            )
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"transformers can't load the GGUF file back ({reason}), so it can't be proven, and nothing was handed over; type "
            "--to merged-16bit and convert that yourself"
        ) from None
    if info["missing_keys"] or info["mismatched_keys"]:
        odd = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise UserError(
            f"the GGUF file lacks {len(odd)} tensors of the model, for one {odd[0]}; nothing was handed over"
        )
    return probe(model.to(device()), source.live.texts, source.live)


def _add_settings(writer: Any, job: Job) -> None:
    import gguf

    c = job.model_config
    heads, head = c.num_attention_heads, _head_size(job)
    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    }
    writer.add_name(job.name)
    writer.add_file_type(types.get(job.gguf_type, gguf.LlamaFileType.MOSTLY_Q8_0))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float((c.rope_parameters or {}).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)


def _expected(job: Job) -> dict[str, Any]:
    """Some of what a reader must find, by the model's config and its tokenizer."""
    c, tokenizer = job.model_config, job.vocabulary.tokenizer
    eos, others = stops(job.vocabulary)
    ids = dict(zip(("eos", "eot", "eom"), (eos, *others), strict=False)) | {"padding": tokenizer.pad_token_id}
    return {
        "general.architecture": c.model_type,
        f"{c.model_type}.block_count": c.num_hidden_layers,
        f"{c.model_type}.attention.head_count": c.num_attention_heads,
        f"{c.model_type}.attention.head_count_kv": c.num_key_value_heads,
        f"{c.model_type}.attention.key_length": _head_size(job),
        f"{c.model_type}.embedding_length": c.hidden_size,
        f"{c.model_type}.feed_forward_length": c.intermediate_size,
        f"{c.model_type}.context_length": c.max_position_embeddings,
        **{f"tokenizer.ggml.{key}_token_id": token for key, token in ids.items() if token is not None},
        "tokenizer.ggml.pre": pre_tokenizer(tokenizer)[0],
        **({"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}),
    }


def _head_size(job: Job) -> int:
    c = job.model_config
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def _tensors(job: Job, source: Source) -> dict[str, str]:
    """Returns the merged model's tensor by its name in the file, in the model's order."""
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == job.model_config.model_type)
    names = gguf.get_tensor_name_map(arch, job.model_config.num_hidden_layers)
    found = {}
    for origin in source.tensors():
        name = names.get_name(origin, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UserError(f"GGUF has no name for {origin}; type --llama-cpp with the folder of a llama.cpp checkout")
        found[name] = origin
    if (job.model_config.rope_parameters or {}).get("rope_type") == "llama3":
        found[ROPE_FREQS] = ROPE_FREQS
    return found


def _shape(origin: str, source: Source, job: Job) -> tuple[int, ...]:
    if origin == ROPE_FREQS:
        return (_head_size(job) // 2,)
    return source.tensors()[origin][1]


def _kind(job: Job, shape: tuple[int, ...]) -> Any:
    """Vectors stay float32; a matrix whose rows are no whole number of q8_0's blocks of 32 is float16, as llama.cpp has it."""
    from gguf import GGMLQuantizationType as Types

    if len(shape) == 1:
        return Types.F32
    kind = {"f32": Types.F32, "f16": Types.F16, "bf16": Types.BF16, "q8_0": Types.Q8_0}[job.gguf_type]
    return Types.F16 if kind is Types.Q8_0 and shape[-1] % 32 else kind


def _encoded(job: Job, source: Source, origin: str) -> np.ndarray:
    """Returns a tensor of the merged model in the file's encoding: bytes [rows, bytes a row]."""
    import gguf

    shape = _shape(origin, source, job)
    kind = _kind(job, shape)
    out = np.empty(gguf.quant_shape_to_byte_shape(shape, kind), dtype=np.uint8)
    if origin == ROPE_FREQS:
        out[:] = _rope_factors(job).view(np.uint8)
        return out
    if job.model_config.model_type == "llama" and origin.endswith(("q_proj.weight", "k_proj.weight")):
        blocks = iter([_interleaved(source.tensor(origin), job, origin)])
    else:
        blocks = source.blocks(origin)
    start = 0
    for block in blocks:
        values = block.numpy()
        if kind is gguf.GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > _HALF_LARGEST:
            raise UserError(f"{origin} has numbers that f16 can't hold; type --gguf-type bf16")
        packed = gguf.quantize(values, kind).view(np.uint8)
        if len(shape) == 1:
            out[:] = packed
            break
        out[start : start + len(packed)] = packed
        start += len(packed)
    return out


def _interleaved(weight: Any, job: Job, origin: str) -> Any:
    """llama.cpp rotates neighbouring rows of a Llama head together, transformers row i and row i + half."""
    c = job.model_config
    heads = c.num_attention_heads if origin.endswith("q_proj.weight") else c.num_key_value_heads
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def _rope_factors(job: Job) -> np.ndarray:
    """What llama3 scaling divides each frequency by, float32 [head size / 2]."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    c = job.model_config
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](c, "cpu")
    size = _head_size(job)
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    plain = c.rope_parameters["rope_theta"] ** -exponents
    return (plain / scaled.numpy().astype(np.float64)).astype(np.float32)
