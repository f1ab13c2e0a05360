"""What loads the student and what samples its rollouts, here, and why: the one place where that is decided.

vLLM and Unsloth are taken where they are installed and can run, PEFT and the built-in loop elsewhere. Asked for by name,
they are taken or refused with the reason.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError

if TYPE_CHECKING:
    import torch

    from poweropd_lite.evaluate.target import Target
    from poweropd_lite.method.rollout import Engine
    from poweropd_lite.models.student import Student


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the reason in a few words."""

    name: str
    why: str


def choose_loader(config: Config) -> Choice:
    """Returns "unsloth" or "peft". To be asked before transformers is used: Unsloth changes its classes when imported."""
    if config.loader == "peft":
        return Choice("peft", "as asked")
    fault = unsloth_fault()
    if fault is None:
        return Choice("unsloth", "as asked" if config.loader == "unsloth" else "it is installed and runs here")
    if config.loader == "unsloth":
        raise UserError(f"loader unsloth can't run: {fault}; type --loader peft")
    return Choice("peft", fault)


def choose_engine(config: Config, device: "torch.device", loader: str, training: bool = True) -> Choice:
    """Returns "vllm" or "loop"; weights that stay as they are (not `training`) need no adapter to be sent."""
    if config.engine == "loop":
        return Choice("loop", "as asked")
    fault = vllm_unfit(config, device, loader, training) or vllm_fault(device.type)
    if fault is None:
        return Choice("vllm", "as asked" if config.engine == "vllm" else "it is installed and runs here")
    if config.engine == "vllm":
        raise UserError(f"engine vllm can't run: {fault}; type --engine loop")
    return Choice("loop", fault)


def vllm_unfit(config: Config, device: "torch.device", loader: str, training: bool = True) -> str | None:
    """Returns why vLLM can't serve the student of this config, or None."""
    from poweropd_lite.engines.vllm import LORA_RANKS

    if config.full_finetune and training:
        return "vLLM is sent an adapter, and full fine-tuning has none"
    if config.modules_to_save:
        return f"vLLM is sent an adapter alone, and {config.modules_to_save} is trained whole"
    if {"embed_tokens", "lm_head"} & {name.strip() for name in config.lora_targets.split(",")}:
        return "vLLM takes no adapter on an embedding from here"
    if config.lora_rank > LORA_RANKS[-1]:
        return f"vLLM serves adapters of rank {LORA_RANKS[-1]} at most, not {config.lora_rank}"
    if config.student_bits == 4 and not (loader == "unsloth" and device.type == "cuda"):
        return "vLLM would sample from 16-bit weights what is trained on 4-bit ones (only Unsloth on CUDA shares them)"
    if config.student_bits == 4 and importlib.util.find_spec("vllm_bnb_plugin") is None:
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


def unsloth_fault() -> str | None:
    """Returns why Unsloth can't run on this machine, or None; imports it."""
    if importlib.util.find_spec("unsloth") is None:
        return "Unsloth is not installed"
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # without an accelerator older versions raise NotImplementedError, others what they meet
        return f"Unsloth can't be imported ({_short(error)})"
    return None


def hush_bitsandbytes() -> None:
    """At its import bitsandbytes advises an optional CPU kernel, which nothing here uses."""
    import logging

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def load_engine(
    choice: Choice, student: "Student", config: Config, stop_ids: frozenset[int], say: Callable[[str], None]
) -> "Engine":
    """Brings up the chosen engine for a loaded student."""
    if choice.name == "vllm":
        from poweropd_lite.engines.vllm import VllmEngine

        return VllmEngine(student, config, stop_ids)
    from poweropd_lite.engines.loop import LoopEngine

    return LoopEngine(student, stop_ids, say, config.decode_batch_size)


def serve_engine(
    target: "Target",
    config: Config,
    device: "torch.device",
    dtype: "torch.dtype",
    stop_ids: frozenset[int],
    say: Callable[[str], None],
) -> "Engine":
    """Brings up `config.engine` for a model that is sampled from and not trained; vLLM loads it by itself."""
    if config.engine == "vllm":
        from poweropd_lite.engines.vllm import VllmServer

        return VllmServer(config, device, dtype, stop_ids, target.adapter)
    from poweropd_lite.engines.loop import LoopEngine
    from poweropd_lite.evaluate.target import load_target

    return LoopEngine(load_target(target, config, device, dtype), stop_ids, say)


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
