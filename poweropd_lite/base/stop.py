"""Stopping without loss: Ctrl-C and SIGTERM ask a run to end after the step in hand; a second one ends it at once.

While models load there is nothing to lose, and the hub's library may wait for minutes: there the first one ends it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from poweropd_lite.base.progress import in_notebook


class Stopped(KeyboardInterrupt):
    """A signal asked to stop, and what there was is saved or gone, as the command promises; `signal` is its number."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.signal = number

    def _render_traceback_(self) -> list[str]:
        """What Jupyter and IPython show in place of a traceback; as an error it keeps the cells below from running."""
        return ["stopped; the cells below were not run"]


class StopRequest:
    """A context in which the signals are caught; `signal` is the one that came, or 0."""

    def __init__(
        self, notice: str = "stopping after this step, then saving (once more to stop at once, without saving)"
    ) -> None:
        self.signal, self.notice = 0, notice
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python can't catch signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal != 0

    def check(self) -> None:
        """Raises Stopped if a signal came: for work that is thrown away where it stands."""
        if self.signal:
            raise Stopped(self.signal)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        _tell(self.notice)


def _tell(notice: str) -> None:
    with suppress(OSError, RuntimeError):  # the terminal is gone, or the signal came in the middle of another print
        print(f"\n{notice}", flush=True)


def end_cell(number: int) -> None:
    """In Jupyter, raises Stopped if the signal that ended the work was the stop button's; called once what there is was saved."""
    if number == signal.SIGINT and in_notebook():
        raise Stopped(number)


LOADING = "stopped while loading: there was nothing to save"


@contextmanager
def stopped_at_once(notice: str, *others: int) -> Iterator[None]:
    """A context in which Ctrl-C, SIGTERM and `others` raise Stopped wherever the program is, so that open folders are removed."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        _tell(notice)
        raise Stopped(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, *others) if main else ()
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
