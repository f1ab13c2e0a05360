"""What a machine computes in, and what a config asks of it, checked before anything loads."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import Finding, UserError
from poweropd_lite.checks.host import check_host


def check_machine(config: Config, device: torch.device) -> list[Finding]:
    """Returns what is found of a run's settings on a device of this machine, and of the tracker that it wants here."""
    findings = check_device(config, device.type == "cuda", has_bfloat16(device), device_name(device))
    return findings + check_host(config) + check_tracker(config)


def check_tracker(config: Config) -> list[Finding]:
    """Returns a refusal where a run's tracker is not installed, and nothing where it is or none is asked for."""
    if config.tracker == "none" or importlib.util.find_spec(config.tracker) is not None:
        return []
    found = f"tracker {config.tracker} is not installed"
    return [Finding("refusal", "tracker", found, f"type pip install {config.tracker}")]


def check_device(config: Config, cuda: bool, bfloat16: bool, name: str) -> list[Finding]:
    """Returns what is found of a run's settings on the device `name`, which need not be here.

    `cuda` says whether it is a CUDA card, `bfloat16` whether it computes in it.
    """
    findings = []
    try:
        findings.append(_dtype(config, cuda, bfloat16, name))
    except UserError as error:
        findings.append(Finding("refusal", "compute dtype", str(error)))
    if not cuda and config.optimizer == "adamw8bit":
        found = f"optimizer adamw8bit needs a CUDA card, not {name}"
        findings.append(Finding("refusal", "optimizer", found, "type --optimizer adamw"))
    if not cuda and config.teacher_bits == 8 and config.loads_teacher:
        found = f"teacher_bits 8 (LLM.int8) needs a CUDA card, not {name}"
        findings.append(Finding("refusal", "teacher's bits", found, "type --teacher-bits 4, 16 or 32"))
    return findings


def _dtype(config: Config, cuda: bool, bfloat16: bool, name: str) -> Finding:
    dtype = dtype_name(config.dtype, cuda, bfloat16, name)
    if dtype != "float16":
        where = "the card" if cuda else "the CPU; Qwen3's own sizes want a card"
        return Finding("ok", "compute dtype", f"{dtype}, on {where}")
    if config.full_finetune:
        found = f"{name} has no bfloat16, and full_finetune in float16 loses small updates"
        return Finding("refusal", "compute dtype", found, "type --dtype float32, or --no-full-finetune")
    found = "this run computes in float16 with a loss scale, which is untested with Qwen3"
    found += "" if config.dtype == "float16" else f": {name} has no bfloat16"
    mend = "--dtype float32 if memory and time allow (plan says), or a card of compute capability 8.0 or more, such as an L4"
    return Finding("warning", "compute dtype", found, mend)


def dtype_name(asked: str, cuda: bool, bfloat16: bool, name: str) -> str:
    """Returns the compute dtype of a setting `dtype` on the device `name`; raises UserError for one that it lacks."""
    if asked == "auto":
        return "float32" if not cuda else "bfloat16" if bfloat16 else "float16"
    if asked == "bfloat16" and cuda and not bfloat16:
        raise UserError(f"{name} has no bfloat16; type --dtype float16 (with a loss scale) or float32")
    if asked == "float16" and not cuda:
        raise UserError(f"float16 needs a CUDA card, not {name}; type --dtype float32 or bfloat16")
    return asked


def compute_dtype(asked: str, device: torch.device) -> torch.dtype:
    """Returns the compute dtype of a setting `dtype` on a device of this machine; raises UserError for one it lacks."""
    return getattr(torch, dtype_name(asked, device.type == "cuda", has_bfloat16(device), device_name(device)))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device of this machine computes in bfloat16 itself."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


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
