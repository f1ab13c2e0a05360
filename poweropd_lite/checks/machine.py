"""What this machine computes in, and what a config asks of it, checked before anything loads."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import Finding, UserError


def check_machine(config: Config, device: torch.device) -> list[Finding]:
    """Returns what is found of a run's settings on a device."""
    cuda, findings = device.type == "cuda", []
    try:
        dtype = str(compute_dtype(config, device)).removeprefix("torch.")
    except UserError as error:
        findings.append(Finding("refusal", "compute dtype", str(error)))
    else:
        findings.append(_dtype(dtype, config, cuda))
    if config.optimizer == "adamw8bit" and not cuda:
        findings.append(
            Finding(
                "refusal",
                "optimizer",
                "optimizer adamw8bit needs a CUDA card, and none is here",
                "type --optimizer adamw",
            )
        )
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        findings.append(
            Finding(
                "refusal", "tracker", f"tracker {config.tracker} is not installed", f"type pip install {config.tracker}"
            )
        )
    if config.teacher_bits == 8 and not cuda:
        findings.append(
            Finding(
                "refusal",
                "teacher's bits",
                "teacher_bits 8 (LLM.int8) needs a CUDA card, and none is here",
                "type --teacher-bits 4, 16 or 32",
            )
        )
    return findings


def _dtype(dtype: str, config: Config, cuda: bool) -> Finding:
    if dtype == "float16" and config.full_finetune:
        return Finding(
            "refusal",
            "compute dtype",
            "the card has no bfloat16, and full_finetune in float16 loses small updates",
            "type --dtype float32, or --no-full-finetune",
        )
    if dtype == "float16":
        return Finding(
            "warning",
            "compute dtype",
            "this run computes in float16 with a loss scale, which is untested with Qwen3"
            + ("" if config.dtype == "float16" else ": the card has no bfloat16"),
            "dtype: float32, if memory allows",
        )
    where = "the card" if cuda else "the CPU; Qwen3's own sizes want a card"
    return Finding("ok", "compute dtype", f"{dtype}, on {where}")


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """Returns the compute dtype of a config on a device; raises UserError for one that it does not have."""
    cuda = device.type == "cuda"
    if config.dtype == "auto":
        if not cuda:
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if config.dtype == "bfloat16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{device_name(device)} has no bfloat16; type --dtype float16 (with a loss scale) or float32")
    if config.dtype == "float16" and not cuda:
        raise UserError("float16 needs a CUDA card, and none is here; type --dtype float32 or bfloat16")
    return getattr(torch, config.dtype)


def device_name(device: torch.device) -> str:
    """Returns a device's name for a user."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"the CPU ({threads} thread{'s' if threads > 1 else ''})"


@contextmanager
def own_threads() -> Iterator[None]:
    """Gives torch's number of threads back at the end of the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
