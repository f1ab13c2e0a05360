"""Whether a card can run our Triton kernels at all; what else each needs, its own file knows."""

import importlib.util

import torch

OLDEST = (8, 0)  # compute capability


def unfit(device: torch.device) -> str | None:
    """Returns why no kernel of ours can run on a card, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        return f"{torch.cuda.get_device_name(device)} is older than what Triton compiles for"
    return None
