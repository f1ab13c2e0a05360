"""What loads the student and what samples its rollouts, here, and why: the one place where that is decided.

vLLM and Unsloth are taken where they are installed and can run, PEFT and the built-in loop elsewhere. Asked for by name,
they are taken or refused with the reason.
"""

import importlib.metadata
import importlib.util
import platform
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.engines.vllm import VllmEngine
from poweropd_lite.method.rollout import Engine
from poweropd_lite.models.experts import active_share
from poweropd_lite.models.loading import taken_from
from poweropd_lite.models.saved import largest_rank, plain, saved_settings
from poweropd_lite.models.shape import LORA_RANKS, Shape, is_the_papers, layer_kinds, read_config, served_run
from poweropd_lite.models.student import Student

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ANSWERS = {"vllm": 512, "cuda": 256, "cpu": 256}  # of an evaluation at once: vLLM's, and the built-in loop's at most
NO_ADAPTERS = {"gpt2"}  # vLLM 0.32 has a class of it, without LoRA
# The part of a machine's memory, one of so many, that the loop's keys and values may take, and of what its weights leave.
MEMORY, LEFT = {"cuda": 2, "cpu": 4}, 0.8


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the reason in a few words."""

    name: str
    why: str


def choose_loader(config: Config) -> Choice:
    """Returns "unsloth" or "peft". To be asked before transformers is used: Unsloth changes its classes when imported."""
    unfit = plain(saved_settings(Path(config.adapter))) if config.adapter is not None else None

    def fault() -> str | None:
        return unfit or unsloth_fault() or part_fault(config.student, config.trust_remote_code)

    return _choose("loader", config.loader, "unsloth", "peft", fault)


def choose_engine(config: Config, device: torch.device, dtype: torch.dtype, loader: str) -> Choice:
    """Returns "vllm" or "loop" for a student that is trained, in `dtype`."""
    unfit = "vLLM is sent an adapter, and full fine-tuning has none" if config.full_finetune else None
    shared = loader == "unsloth" and device.type == "cuda"
    targets, whole = (names.split(",") for names in (config.lora_targets, config.modules_to_save))
    start = saved_settings(Path(config.adapter)) if config.adapter is not None else {}
    dora, rank = bool(start.get("use_dora")), largest_rank(start) if start else config.lora_rank
    unfit = unfit or vllm_unfit(rank, targets, whole, config.student_bits, shared, dora)
    unfit = unfit or part_fault(config.student, config.trust_remote_code)
    return choose_sampler(
        config.engine, device, dtype, unfit, lambda: read_config(config.student, "student", config.trust_remote_code)
    )


def choose_sampler(
    asked: str,
    device: torch.device,
    dtype: torch.dtype,
    unfit: str | None,
    model: Callable[[], "PretrainedConfig"],
    adapted: bool = True,
) -> Choice:
    """Returns "vllm" or "loop", as asked or ("auto") as this machine has it; `unfit` is why vLLM can't serve the weights.

    `model` gives the config of what is served, with an adapter or (not `adapted`) whole; it is asked where vLLM could run.
    """

    def fault() -> str | None:
        return unfit or vllm_fault(device.type) or vllm_lacks(model(), device.type, dtype, adapted)

    return _choose("engine", asked, "vllm", "loop", fault)


def answers_at_once(engine: str, device: str, shape: Shape, bits: int, length: int, itemsize: int, memory: int) -> int:
    """Returns how many answers an evaluation samples at once, of at most `length` tokens with their prompts, keys and values
    of `itemsize` bytes a number, beside weights of `bits`, on a machine of so many bytes of memory.
    """
    if engine == "vllm":
        return ANSWERS["vllm"]
    room = min(memory / MEMORY[device], LEFT * (memory - shape.weight_bytes(bits, itemsize)))
    return max(1, min(ANSWERS[device], int(room // shape.cache_bytes(1, length, itemsize))))


def _choose(what: str, asked: str, fast: str, own: str, fault_of_fast: Callable[[], str | None]) -> Choice:
    if asked == own:
        return Choice(own, "as set")
    fault = fault_of_fast()
    if fault is None:
        return Choice(fast, "as set" if asked == fast else "it is installed and runs here")
    if asked == fast:
        raise UserError(f"{what} {fast} can't run: {fault}; type --{what} {own}")
    return Choice(own, fault)


def part_fault(model: str, remote_code: bool) -> str | None:
    """Returns why neither vLLM nor Unsloth takes a model of which the language model alone is loaded here; None of any other."""
    whole = None if is_the_papers(model) else taken_from(model, "student", remote_code)  # whose configs need no hub
    return whole and f"of a {whole} the language model alone is taken here, and not there"


def vllm_unfit(
    rank: int, targets: Iterable[str], whole: Iterable[str], bits: int, shared: bool, dora: bool = False
) -> str | None:
    """Returns why vLLM can't serve such weights, or None.

    They have an adapter of `rank` on `targets` (`dora`: of that kind), modules trained `whole`, a base of `bits`;
    `shared`: in Unsloth's own vLLM.
    """
    names = ",".join(name.strip() for name in whole if name.strip())
    if names:
        return f"vLLM is sent an adapter alone, and {names} is trained whole"
    if dora:
        return "vLLM serves no DoRA adapter"
    if {"embed_tokens", "lm_head"} & {name.strip() for name in targets}:
        return "vLLM takes no adapter on an embedding from here"
    if rank > LORA_RANKS[-1]:
        return f"vLLM serves adapters of rank {LORA_RANKS[-1]} at most, not {rank}"
    if bits == 4 and not shared:
        return "vLLM would sample from 16-bit weights what is trained on 4-bit ones (only Unsloth on CUDA shares them)"
    if bits == 4 and importlib.util.find_spec("vllm_bnb_plugin") is None:
        return "vLLM serves 4-bit weights through a plugin, which is not installed (pip install vllm-bnb-plugin)"
    return None


def vllm_fault(device_type: str) -> str | None:
    """Returns why vLLM can't run on this machine, or None."""
    if importlib.util.find_spec("vllm") is None:
        # Unsloth hides a vLLM whose compiled part does not load.
        return "vLLM is installed, but does not load here" if installed("vllm") else "vLLM is not installed"
    try:
        from vllm.platforms import current_platform
    except Exception as error:  # it loads compiled code, which fails in its own ways
        return f"vLLM can't be imported ({_short(error)})"
    fits = current_platform.is_cuda() if device_type == "cuda" else current_platform.is_cpu()
    return None if fits else f"the vLLM that is installed is not built for {device_type}"


def vllm_lacks(c: "PretrainedConfig", device_type: str, dtype: torch.dtype, adapted: bool) -> str | None:
    """Returns what vLLM (0.32) lacks for a family of models in `dtype`, though it has a class for it, or None."""
    text = c.get_text_config()
    linear = "linear_attention" in layer_kinds(text)
    if text.model_type.startswith("qwen3_5") and importlib.util.find_spec("torchvision") is None:
        return (
            f"vLLM's class of {c.model_type} imports torchvision, for text too, which is not installed; type pip install "
            "torchvision"
        )
    if not _has_own_class(c):
        return (
            f"vLLM has no class of its own for {c.model_type}, and would change transformers' in this process, which the "
            "trainer's model is of"
        )
    if adapted and c.model_type in NO_ADAPTERS:
        return f"vLLM's class of {c.model_type} takes no adapter"
    if device_type == "cuda":
        return None
    if adapted and active_share(text) < 1.0:
        return (
            "beside an adapter vLLM computes experts by Triton's kernels alone, which a CPU has not "
            "(select_unquantized_moe_backend)"
        )
    if linear and dtype != torch.bfloat16:
        return "vLLM's CPU build computes linear attention in bfloat16 alone (cpu_gdn_attention_core); type --dtype bfloat16"
    return None


def _has_own_class(c: "PretrainedConfig") -> bool:
    try:
        from vllm.model_executor.models.registry import ModelRegistry
    except ImportError:  # another version's
        return True
    found = [ModelRegistry.models.get(name) for name in c.architectures or ()]
    return not found or any(each and ".transformers" not in getattr(each, "module_name", "") for each in found)


def unsloth_fault() -> str | None:
    """Returns why Unsloth can't run on this machine, or None; imports it."""
    if importlib.util.find_spec("unsloth") is None:
        return "Unsloth is not installed"
    # Its probe of vLLM loads vllm._C, which vLLM's CPU build has for AVX512-BF16 alone. Where vLLM then loads the library of
    # another x86 CPU beside that, the process is aborted; so the probe finds an empty module there.
    x86 = platform.machine() in ("x86_64", "AMD64") and not torch.cuda.is_available()
    empty = x86 and not torch.cpu._is_avx512_bf16_supported() and "vllm._C" not in sys.modules
    if empty:
        sys.modules["vllm._C"] = types.ModuleType("vllm._C")
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # without an accelerator older versions raise NotImplementedError, others what they meet
        return f"Unsloth can't be imported ({_short(error)})"
    finally:
        if empty:
            del sys.modules["vllm._C"]
    return None


def load_engine(
    choice: Choice, student: Student, config: Config, stop_ids: frozenset[int], say: Callable[[str], None]
) -> Engine:
    """Brings up the chosen engine for a student that is trained."""
    if choice.name == "vllm":
        return VllmEngine(student, served_run(config), stop_ids)
    return LoopEngine(student, stop_ids, say, config.decode_batch_size, config.kernels)


def installed(package: str) -> str | None:
    """Returns the version of a package that is installed, or None; vLLM's CPU build goes by another name."""
    for name, note in ((package, ""), (f"{package}-cpu", " (CPU build)")):
        try:
            return importlib.metadata.version(name) + note
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
