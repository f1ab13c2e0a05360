"""Gradient checkpointing and micro-batches where they are auto: the fastest that fits a card.

Without checkpointing a card computes a quarter less, and larger micro-batches wait less for the host: that is the order in
which they are tried. Measured on an H100 alone (docs/performance.md), which waits longest: there 36,864 tokens with
checkpointing (0.53 s) are a little faster than 16,128 without (0.58), and slower than 36,864 without (0.43).
"""

from collections.abc import Callable, Iterator

import torch

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.plan.memory import CUDA_CONTEXT, GIB, MemoryPlan, fused_here, plan_memory
from poweropd_lite.plan.trace import traces_of
from poweropd_lite.rewards.table import reads_rows

MARGIN = 0.08  # of a card's memory, left free: a plan is within 5% of what was measured
SMALL = 24  # GiB: on a card up to it auto takes no more than the rest of a run, for a screen may need it too
SHARES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16)  # of a batch in one micro-batch


def settled(config: Config, memory: Callable[[Config], MemoryPlan], gib: float | None, others: float = 0.0) -> Config:
    """Returns `config` with what it takes in place of every auto, for a card of `gib` GiB of which `others` use some.

    A number that was given stays. Without a card, or where nothing larger fits, it is Config.sizes.
    """
    asked = {name for name in config.sizes if getattr(config, name) == "auto"}
    plain = changed(config, **{name: value for name, value in config.sizes.items() if name in asked})
    if gib is None or not asked:
        return plain
    limit = (1 - MARGIN) * (gib - others) * GIB
    if gib <= SMALL:
        limit = min(limit, memory(plain).needed)

    def first(tried: Iterator[Config]) -> Config | None:
        return next((one for one in tried if memory(one).needed <= limit), None)

    switches = (False, True) if "gradient_checkpointing" in asked else (plain.recomputes,)
    budgets = _budgets(plain) if "token_budget" in asked else [plain.tokens_at_once]
    pairs = ({"gradient_checkpointing": on, "token_budget": n} for on in switches for n in budgets)
    least = {"teacher_token_budget": plain.tokens_at_once} if "teacher_token_budget" in asked else {}
    found = first(changed(plain, **pair, **least) for pair in pairs)
    if found is None:
        return plain
    if not least or config.served:  # whose requests are of no more than the plain budget: its card is another
        return found
    if reads_rows(config):  # scored by the student's micro-batches
        return changed(found, teacher_token_budget=None)
    return first(changed(found, teacher_token_budget=n) for n in _budgets(plain)) or found


def _budgets(plain: Config) -> list[int]:
    """Tokens of micro-batches to try: parts of the largest batch, in whole longest rollouts, down to the plain budget."""
    longest = plain.max_prompt_tokens + plain.max_new_tokens
    parts = [longest * int(share * plain.batch_size) for share in SHARES]
    return [*dict.fromkeys(part for part in parts if part > plain.tokens_at_once), plain.tokens_at_once]


def settle_run(
    config: Config, device: torch.device, dtype: torch.dtype, engine: str, shared: bool, say: Callable[[str], None]
) -> Config:
    """Returns a run's config with what auto takes on the card at hand, having said it; on a CPU nothing is planned."""
    if device.type != "cuda":
        return changed(config, **config.sizes)
    free, total = torch.cuda.mem_get_info(device)
    ours = CUDA_CONTEXT + torch.cuda.memory_reserved(device)  # also of a run before, in a notebook
    others = max(0.0, total - free - ours) / GIB
    try:
        traces, fused = traces_of(config, dtype), fused_here(config)

        def memory(of: Config) -> MemoryPlan:
            return plan_memory(of, traces, True, engine, shared, fused=fused)

        found = settled(config, memory, total / GIB, others)
        if found != config:
            say(f"auto: {words(found)}: planned {memory(found).needed / GIB:.1f} of {total / GIB:.1f} GiB")
        return found
    except Exception as error:  # a model's own code, on tensors without memory, raises what it likes
        found = changed(config, **config.sizes)
        say(
            f"auto: {words(found)}, for memory can't be planned ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        )
        return found


def words(found: Config) -> str:
    """Returns what was found, for a screen."""
    switch = "" if found.recomputes else "no "
    sizes = f"{found.tokens_at_once:,} tokens (student) and {found.teacher_tokens_at_once:,} (teacher)"
    return f"{switch}checkpointing, micro-batches of {sizes}"
