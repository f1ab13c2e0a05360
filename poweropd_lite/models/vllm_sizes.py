"""What vLLM takes of a card's memory, by arithmetic: known to who loads the student, to who samples, and to plan."""

from dataclasses import dataclass

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.models.loading import model_path
from poweropd_lite.models.shape import Shape, read_shape

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM builds its LoRA kernels for
GIB = 2**30
BESIDE_WEIGHTS = 2 * GIB  # activations, CUDA graphs and workspaces of a small model


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
    return Served(model, config.longest_rollout, lines, most, config.lora_rank, config.trust_remote_code, config.seed)


def lora_rank_limit(rank: int) -> int:
    """Returns the smallest rank that vLLM supports and that holds `rank`; raises UserError above its largest."""
    for limit in LORA_RANKS:
        if rank <= limit:
            return limit
    raise UserError(
        f"vLLM serves adapters of rank {LORA_RANKS[-1]} at most; type --lora-rank {LORA_RANKS[-1]} or --engine loop"
    )


def cache_bytes(shape: Shape, served: Served, dtype: torch.dtype) -> int:
    """Returns the bytes of keys and values of `served.lines` of the longest completions, in vLLM's blocks of 16 tokens."""
    # One block more a completion, and 128 of vLLM's own: the CPU build's blocks are of 128 tokens.
    return shape.cache_bytes(served.lines, served.longest + 128, dtype.itemsize)


def memory_share(served: Served, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the share of the card's memory that vLLM may use beside a student that learns, 0 to 1."""
    shape = read_shape(served.model, "student", served.remote_code)
    need = shape.weight_bytes(8 * dtype.itemsize) + cache_bytes(shape, served, dtype) + BESIDE_WEIGHTS
    return round(min(0.9, need / torch.cuda.mem_get_info(device)[1]), 3)
