"""Who takes a run's steps: one process alone, or several, each on a card of its own with its share of a step's prompts.

Several are started by `accelerate launch` or torchrun, which tell each its place (RANK, LOCAL_RANK, WORLD_SIZE). Each holds
the student, its optimizer, an engine and the teacher. They tell each other a step's rollouts, the numbers of its tokens and
the gradient: what follows from these every one computes for itself, and comes to the same. The first alone has the run folder
and speaks; the others' books are thrown away.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
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
        """What goes wrong inside on one process all are told before they exchange numbers: out of memory, all are."""
        yield


ALONE = Alone()


class Elsewhere(MemoryError):
    """Another process ran out of memory."""


class FailedElsewhere(UserError):
    """Another process can't go on with the step in hand, and says why."""


FINE, MEMORY, FAILED = range(3)


class Ranks(Alone):
    """One of several processes."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def join(self, values: "Sequence[Tensor]", places: "Sequence[Tensor]") -> None:
        import torch

        own = torch.zeros_like(values[0], dtype=torch.bool)
        for place in places:
            own[place] = True
        whole = torch.stack(list(values)).masked_fill_(~own, 0.0)  # a number and zeros: their sum is exact
        self._meet(FINE)  # once all memory is there
        torch.distributed.all_reduce(whole)
        for value, numbers in zip(values, whole, strict=True):
            value.copy_(numbers)

    def add(self, loss: "Tensor", parameters: "Sequence[nn.Parameter]") -> None:
        import torch

        some = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int)
        torch.distributed.all_reduce(some, torch.distributed.ReduceOp.MAX)
        learnt = [parameter for parameter, any_has in zip(parameters, some.tolist(), strict=True) if any_has]
        for parameter in learnt:
            if parameter.grad is None:  # no token of this process reached it
                parameter.grad = torch.zeros_like(parameter)
        self._meet(FINE)
        torch.distributed.all_reduce(loss)
        for parameter in learnt:
            torch.distributed.all_reduce(parameter.grad)

    def gather(self, own: list[T]) -> list[T]:
        import torch

        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, own)
        return [each for part in found for each in part]

    def any(self, flag: bool) -> bool:
        return self._most(int(flag)) > 0

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
        except (Elsewhere, FailedElsewhere):
            raise
        except Exception as error:
            self._most(MEMORY if is_out_of_memory(error) else FAILED)
            raise

    def _meet(self, state: int) -> None:
        """Every process says how it is, before numbers are exchanged or in place of that."""
        found = self._most(state)
        if found == MEMORY:
            raise Elsewhere("another process ran out of memory")
        if found == FAILED:
            raise FailedElsewhere("another process could not take this step, and says why; nothing of it was taken")

    def _most(self, number: int) -> int:
        """Returns the largest of all processes' numbers; through the host's memory, which a full card has, too."""
        import torch

        said = torch.tensor(number)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        return int(said)


@contextmanager
def joined(say: Callable[[str], None]) -> Iterator[Alone]:
    """Gives this process's place among those that were started with it; alone where it was started by itself."""
    places = [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    rank, local, count = (int(place or 0) for place in places)
    if None in places or count == 1:  # a machine may set one of them for itself
        yield ALONE
        return
    import torch

    if rank != local:
        raise UserError(
            f"process {rank} is number {local} of its machine: several machines are not tried; start all on one, or see docs/verl.md"
        )
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            cards = torch.cuda.device_count()
            raise UserError(
                f"{count} processes were started, and there are {cards} cards; type --num_processes {cards}"
            )
        torch.cuda.set_device(local)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT
    )
    with open(os.devnull, "w", encoding="utf-8") as nobody, ExitStack() as quiet:
        if rank:  # an error is told once this has ended
            quiet.enter_context(redirect_stdout(nobody))
            quiet.enter_context(redirect_stderr(nobody))
        say(f"{count} processes train together, each on its share of a step's prompts")
        yield Ranks(rank, count)
    torch.distributed.destroy_process_group()  # not after an error: it would wait for the others


def settle(config: Config, count: int) -> Config:
    """Returns the config of a run of `count` processes; raises UserError for what several can't do together."""
    if count == 1:
        return config
    if config.batch_size < count:
        raise UserError(
            f"a step of {config.batch_size} prompts can't be shared by {count} processes; type --batch-size with at least that"
        )
    for name, tried in (("engine", "loop"), ("loader", "peft")):
        if getattr(config, name) not in ("auto", tried):
            raise UserError(
                f"{name} {getattr(config, name)} has not been tried with several processes; type --{name} {tried}, or start one"
            )
    return changed(config, engine="loop", loader="peft")
