"""The plan of a run that is about to load: what its peak should be, to stand beside what is measured."""

from collections.abc import Callable
from dataclasses import replace

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.memory import machine_bytes, peak_gib
from poweropd_lite.models.shape import read_config
from poweropd_lite.plan.memory import GIB, plan_memory
from poweropd_lite.plan.trace import Traces


def planned_gib(
    config: Config, device: torch.device, dtype: torch.dtype, engine: str, shared: bool, say: Callable[[str], None]
) -> float | None:
    """Returns the planned peak of a run, GiB, as `recorder.peak_gib` measures it, having said it; None if it can't be planned.

    On a card that is what tensors hold; on a CPU what this process already takes is added. More than the machine has is
    said and not refused: prompts may be shorter than the config allows, and running out of memory halves what is in the way.
    """
    cuda = device.type == "cuda"
    try:
        configs = (
            read_config(config.student, "student", config.trust_remote_code),
            read_config(config.teacher, "teacher", config.trust_remote_code),
        )
        found = plan_memory(config, Traces(*configs, dtype), cuda, engine, shared)
    except Exception as error:  # a model's own code on tensors without memory: no reason not to train it
        say(f"memory not planned ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
        return None
    if not cuda:
        found = replace(found, runtime=round(peak_gib() * GIB))
    planned = (found.peak + (0 if cuda else found.runtime)) / GIB
    has = _memory(device) if cuda else machine_bytes()
    if found.needed > has:
        say(
            f"memory planned: {found.needed / GIB:.1f} GiB at the worst ({found.peak_phase}), and {has / GIB:.1f} are here; "
            "python -m poweropd_lite.plan with the same settings finds what fits"
        )
    else:
        say(f"memory planned: peak {planned:.2f} GiB at the worst ({found.peak_phase})")
    return planned


def _memory(device: torch.device) -> int:

    return torch.cuda.get_device_properties(device).total_memory
