"""What was written against what should have been."""

from collections.abc import Callable

from poweropd_lite.base.errors import UserError

Tick = Callable[[str, int, int], object]  # what is done, how much of it, of how much


def check_names(written: set[str], tensors: set[str]) -> None:
    """Raises UserError unless a written file has the tensors of the merge."""
    if odd := sorted(written ^ tensors):
        raise UserError(f"the written model has other tensors than the merge ({len(odd)}, for one {odd[0]})")


def check_equal(name: str, equal: bool) -> None:
    """Raises UserError unless a tensor was read back as it was written."""
    if not equal:
        raise UserError(f"{name} was read back from the disk as other numbers than were written; is the disk sound?")
