"""Who takes a run's steps: one process alone, or several, each on a card of its own with its share of a step's prompts.

Several are started by `accelerate launch` or torchrun, which tell each its place (RANK, LOCAL_RANK, WORLD_SIZE). Each holds
the student, its optimizer, an engine and the teacher. They tell each other a step's rollouts, the numbers of its tokens and
the gradient: what follows from these every one computes for itself, and comes to the same. The first alone has the run folder
and speaks; the others' books are thrown away.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
LONGEST_WAIT = timedelta(hours=12)  # while the first evaluates; one that died is seen by what started them, at once


class Alone:
    """One process, which has all of a step."""

    rank, count = 0, 1

    def share(self, count: int) -> slice:
        """Returns which of `count` prompts or rollouts are this process's: side by side, of sizes that differ by one at most."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def join(self, values: "Sequence[Tensor]", places: "Sequence[Tensor]") -> None:
        """Makes values [N] whole on every process, in place: each has its own numbers at its own `places` (int64)."""

    def add(self, loss: "Tensor", parameters: "Sequence[nn.Parameter]") -> None:
        """Makes the gradients, and the loss [], sums over all processes, in place."""

    def gather(self, own: list[T]) -> list[T]:
        """Returns what all processes have, in the order of their shares."""
        return own

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        return flag

    def of_first(self, value: T) -> T:
        """Returns the first process's value."""
        return value

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """What is inside the first process does before the others."""
        yield

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Runs out of memory on all processes where one does, so that all try again with smaller pieces."""
        yield


ALONE = Alone()


class Elsewhere(MemoryError):
    """Another process ran out of memory."""


class Ranks(Alone):
    """One of several processes."""

    def __init__(self, rank: int, count: int) -> None:
        import torch

        self.rank, self.count = rank, count
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def join(self, values: "Sequence[Tensor]", places: "Sequence[Tensor]") -> None:
        import torch

        self._meet(False)
        own = torch.zeros_like(values[0], dtype=torch.bool)
        for place in places:
            own[place] = True
        whole = torch.stack(list(values)).masked_fill_(~own, 0.0)  # a number and zeros: their sum is exact
        torch.distributed.all_reduce(whole)
        for value, numbers in zip(values, whole, strict=True):
            value.copy_(numbers)

    def add(self, loss: "Tensor", parameters: "Sequence[nn.Parameter]") -> None:
        import torch

        torch.distributed.all_reduce(loss)
        for parameter in parameters:
            if parameter.grad is None:  # no token in the loss of this process
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def gather(self, own: list[T]) -> list[T]:
        import torch

        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, own)
        return [each for part in found for each in part]

    def any(self, flag: bool) -> bool:
        import torch

        said = torch.tensor(int(flag), device=self.device)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        return bool(said)

    def of_first(self, value: T) -> T:
        import torch

        told = [value]
        torch.distributed.broadcast_object_list(told)
        return told[0]

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        if self.rank:
            self.any(False)
        yield
        if not self.rank:
            self.any(False)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) and not isinstance(error, Elsewhere):
                self._meet(True)
            raise

    def _meet(self, failed: bool) -> None:
        """Every process says whether it ran out of memory, before numbers are exchanged or in place of that."""
        if self.any(failed) and not failed:
            raise Elsewhere("another process ran out of memory")


@contextmanager
def joined(say: Callable[[str], None]) -> Iterator[Alone]:
    """Gives this process's place among those that were started with it; alone where it was started by itself."""
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if count == 1:
        yield ALONE
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT
    )
    with open(os.devnull, "w", encoding="utf-8") as nobody, redirect_stdout(nobody if rank else sys.stdout):
        say(f"{count} processes train together, each on its share of a step's prompts")
        yield Ranks(rank, count)
    torch.distributed.destroy_process_group()  # not after an error: it would wait for the others


def settle(config: Config, ranks: Alone) -> Config:
    """Returns the config of a run of several processes; raises UserError for what they can't do together."""
    if ranks.count == 1:
        return config
    if config.batch_size < ranks.count:
        raise UserError(
            f"a step of {config.batch_size} prompts can't be shared by {ranks.count} processes; type --batch-size with at least that"
        )
    for name, tried in (("engine", "loop"), ("loader", "peft")):
        if getattr(config, name) not in ("auto", tried):
            raise UserError(
                f"{name} {getattr(config, name)} has not been tried with several processes; type --{name} {tried}, or start one"
            )
    return changed(config, engine="loop", loader="peft")
