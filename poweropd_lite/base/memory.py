"""Running out of memory, and the card's other faults: telling them from errors, and going on with smaller micro-batches."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.unix import resource

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@contextmanager
def explained_out_of_memory(what: str) -> Iterator[None]:
    """Turns running out of memory inside the block into a UserError that says in what."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"out of memory in {what}: {text}\ntrain a smaller student or a LoRA adapter, lower --lora-rank, or type "
            "--optimizer adamw8bit (CUDA); a smaller --token-budget leaves more room beside the micro-batches"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the card, or the machine, had no memory left for a tensor."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator, CUDA graphs and cuBLAS say it in their own words.
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def card_fault(error: BaseException) -> str | None:
    """Returns in words that memory ran out, or the card or its driver failed, of which nothing can be mended here; else None."""
    import torch

    words = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error", "NVML")
    of_card = isinstance(error, getattr(torch, "AcceleratorError", ())) or any(word in str(error) for word in words)
    if any(word in str(error) for word in ("device-side assert", "illegal memory access", "misaligned address")):
        return None  # a program's own fault, of which the traceback tells
    text = " ".join(str(error).split())[:300]
    if is_out_of_memory(error):
        return f"memory ran out: {text}"
    return f"the card or its driver failed: {text}" if of_card and isinstance(error, RuntimeError) else None


@contextmanager
def explained_faults(mend: str) -> Iterator[None]:
    """Turns a `card_fault` inside the block into a UserError that ends with what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if (fault := card_fault(error)) is None:
            raise
        raise UserError(f"{fault}\n{mend}") from None


def halving(
    work: Callable[[int], T], budget: int, longest: int, device: "torch.device", say: Callable[[str], None]
) -> tuple[T, int, int]:
    """Returns `work(budget)`, halving the token budget of a micro-batch for as long as memory runs out.

    With it come the budget that worked and how often it was halved. `longest` is the longest rollout: a budget below it
    changes nothing. Raises UserError when a single rollout does not fit.
    """
    import torch

    halved = 0
    while True:
        try:
            return work(budget), budget, halved
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            text = " ".join(str(error).split())[:200]
        # Outside the handler, whose traceback holds the tensors of the failed try.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if budget <= longest:
            raise UserError(
                f"one rollout of {longest:,} tokens does not fit in memory: {text}\nlower --max-new-tokens, keep "
                "--gradient-checkpointing and --teacher-bits 4, or train a smaller student"
            )
        budget, halved = max(longest, budget // 2), halved + 1
        say(f"out of memory: the step is repeated with micro-batches of {budget:,} tokens ({text})")


def machine_bytes() -> int:
    """Returns the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_gib() -> float:
    """Returns the most memory in use so far, GiB: the card's, as torch allocated it, or else this process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30
