"""Where the parts of a model stand that is larger than its device: a device_map for transformers, which streams the rest.

Embedding, norm and head stay on the device, since the log-probs read the head's rows themselves; only whole decoder layers
go to the host's memory or stay in their files, from where accelerate's hooks bring each to the device when its turn comes.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch

from poweropd_lite.models.loading import explained_load, load_model_config

GIB = 2**30
Places = dict[str, str | int]  # part of a model -> where it stands; empty: all on the device
_SPARE = 2 * GIB  # for activations, logits of a chunk and what the allocator can't use


def layer_map(
    name: str, device: torch.device, dtype: torch.dtype, room: float | None = None, remote_code: bool = False
) -> Places:
    """Returns the device_map of a teacher in `dtype`: part -> `device` (a card by its number), "cpu" or "disk".

    `room` is the bytes that its weights may take on `device`; if not given, what is free there. On a CPU there is no step
    between memory and disk. Raises UserError for a teacher that is no causal LM.
    """
    from accelerate.utils import get_max_memory
    from transformers import AutoModelForCausalLM

    model_config, _ = load_model_config(name, "teacher", remote_code)
    with explained_load(name, "teacher", "causal language model"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, dtype=dtype, trust_remote_code=remote_code)
    kinds = set(model._no_split_modules or ())
    layers = [name for name, module in model.named_modules() if type(module).__name__ in kinds]
    sizes = {name: sum(p.numel() * p.element_size() for p in model.get_submodule(name).parameters()) for name in layers}
    inside = tuple(f"{name}." for name in layers)
    others = [n for n, module in model.named_modules() if _own_tensors(module) and not f"{n}.".startswith(inside)]
    fixed = sum(p.numel() * p.element_size() for p in model.parameters()) - sum(sizes.values())
    host = max(0, get_max_memory()["cpu"] - _SPARE)
    if room is None:
        room = host if device.type == "cpu" else torch.cuda.mem_get_info(device)[0] - _SPARE
    here = _place(device)
    places = dict.fromkeys(others, here)
    left = room - fixed
    if sum(sizes.values()) > left:
        left -= max(sizes.values(), default=0)  # the streamed layer at hand stands on the device too
    for name in layers:
        if sizes[name] <= left:
            places[name], left = here, left - sizes[name]
        elif device.type != "cpu" and sizes[name] <= host:
            places[name], host, left = "cpu", host - sizes[name], 0.0
        else:
            places[name], left = "disk", 0.0
    return places


def streamed(places: Places, device: torch.device) -> int:
    """Returns how many layers of a device_map are not on `device`."""
    return sum(place != _place(device) for place in places.values())


@contextmanager
def placing(places: Places, device: torch.device) -> Iterator[dict[str, Any]]:
    """Gives what load_teacher takes of `places`: nothing, if all is on the device. On disk it needs the block to last."""
    if not streamed(places, device):
        yield {}
        return
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it says twice what is meant to be so
    if "disk" not in places.values():
        yield {"device_map": places}
        return
    with TemporaryDirectory(prefix="poweropd_lite-", ignore_cleanup_errors=True) as scratch:
        yield {"device_map": places, "offload_folder": scratch}


def _place(device: torch.device) -> str | int:
    return "cpu" if device.type == "cpu" else device.index or 0


def _own_tensors(module: torch.nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
