"""Processes that decide whether answers are right, or score them by a user's function, each ended after one second on one.

Computer algebra can be made to run for ever (9^9^9^9), eat all memory or crash, so it happens elsewhere: a small parent
that has math-verify loaded, and nothing of torch, forks workers and hands out the questions. A worker's time is
the kernel's to keep: a timer that nobody catches kills it. The second is of processor time, so that a busy machine gives
the same verdicts; ten seconds by the clock end what waits for something.

A user's function (function.py) is called in the same way, by a parent of its own that has imported its module.

The parent ends when its standard input does, so nothing outlives a killed run. A library of worker pools would do much of
this, but imports the user's main module into every worker or forks from a process with threads.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from poweropd_lite.grade.function import load_function

SECONDS = 1.0  # of processor time for one question
WALL_SECONDS = 10.0  # by the clock
IMPORT_SECONDS = 60  # by the clock, for a user's module
MEMORY = 2**30  # bytes of address space a worker may have; macOS refuses such a limit (cpython issue 78783)
QUESTIONS_A_WORKER = 2000  # then a fresh one: sympy's caches grow
IN_FLIGHT = 64
POLL = 0.5  # seconds between looks at workers whose end no pipe told of
RIGHT, WRONG, UNDECIDED = b"1", b"0", b"?"


@dataclass(frozen=True)
class Question:
    """One thing to be decided: is `answer` the `gold` one? `official` asks the released code's procedure instead."""

    gold: str
    answer: str
    tolerance: float | None = None
    official: bool = False  # `answer` is a whole completion then


class GraderFault(ValueError):
    """A user's function that can't be called, and why."""


class Judges:
    """A started parent with its workers; safe to ask from any thread. One serves the whole program (`judges()`).

    With `grader`, module:function, they score by that function; `about` has its file and the SHA-256 of it.
    """

    def __init__(self, workers: int, grader: str = "") -> None:
        self.workers, self.grader, self._lock, self._owner = workers, grader, threading.Lock(), os.getpid()
        self.about: dict[str, str] = {}
        self._start()

    def decide(
        self, questions: Sequence[Question], tick: Callable[[int, int], object] = lambda done, total: None
    ) -> list[bool | None]:
        """Returns for each question whether it is so, or None if that could not be decided in time.

        `tick` and what is raised: as `replies` has them.
        """
        return [{RIGHT: True, WRONG: False}.get(reply) for reply in self.replies(list(map(asdict, questions)), tick)]

    def replies(
        self, questions: Sequence[dict], tick: Callable[[int, int], object] = lambda done, total: None
    ) -> list[bytes]:
        """Returns what a worker says to each question (JSON); UNDECIDED where its process was ended, or ended itself.

        `tick` is told how many of how many are decided. Raises RuntimeError if the processes can't be kept running.
        """
        with self._lock:
            verdicts: dict[int, bytes] = {}
            for _ in range(3):
                open_ones = deque(i for i in range(len(questions)) if i not in verdicts)
                if self.process.poll() is not None:
                    self.close()
                    self._start()
                try:
                    self._ask(questions, open_ones, verdicts, tick)
                    break
                except (BrokenPipeError, EOFError):  # the parent itself was killed
                    self.close()
                except BaseException:  # Ctrl-C, most of all: answers that are under way must not meet the next question
                    self.close()
                    raise
            else:
                raise RuntimeError("the grading processes were killed three times; is there too little memory?")
            return [verdicts[i] for i in range(len(questions))]

    def _ask(self, questions: Sequence[dict], waiting: deque, verdicts: dict[int, bytes], tick: Callable) -> None:
        asked = 0
        while waiting or asked:
            while waiting and asked < IN_FLIGHT:
                number = waiting.popleft()
                self._to.write(json.dumps([number, questions[number]]).encode() + b"\n")
                asked += 1
            self._to.flush()
            line = self._from.readline()
            if not line:
                raise EOFError
            number, verdict = line.rstrip(b"\n").split(b" ", 1)
            verdicts[int(number)] = verdict
            asked -= 1
            tick(len(verdicts), len(questions))

    def _start(self) -> None:
        if not hasattr(os, "fork"):
            raise RuntimeError(
                f"{'scoring' if self.grader else 'computer algebra'} is done in forked processes, and this system ({sys.platform}) has no fork: grade on "
                "Linux, or in WSL on Windows"
            )
        code = "import sys; sys.path.insert(0, sys.argv[1]); from poweropd_lite.grade.judges import serve; serve(int(sys.argv[2]), sys.argv[3])"
        command = [sys.executable, "-P", "-c", code, str(Path(__file__).parents[2]), str(self.workers), self.grader]
        # A session of its own: Ctrl-C is the run's to handle.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout
        first = self._from.readline()
        if not first and not self.grader:
            raise RuntimeError(
                "the grading processes did not start; is math-verify installed (pip install math-verify)?"
            )
        before, self.about = self.about, json.loads(first or b"{}")
        fault = self.about.get("fault") or ("" if first else f"it ended Python, or took more than {IMPORT_SECONDS} s")
        if before and before != self.about:
            fault = fault or f"{before['file']} changed while it was used"
        if fault:
            self.close()
            raise GraderFault(fault)

    def close(self) -> None:
        """Ends the processes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                pipe.close()


_running: dict[str, Judges] = {}
_starting = threading.Lock()


def judges(grader: str = "", anew: bool = False) -> Judges:
    """Returns the program's judges, those of maths or of a user's function, started at the first call (about a second).

    `anew` starts them again, for a file may have changed. Raises GraderFault where the function can't be had.
    """
    with _starting:
        if anew and grader in _running and _running[grader]._owner == os.getpid():
            _running.pop(grader).close()
        if grader not in _running or _running[grader]._owner != os.getpid():  # a forked child must not share the pipes
            count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            _running[grader] = Judges(min(count, 16), grader)
        return _running[grader]


def serve(count: int, grader: str) -> None:
    """The parent: reads questions from standard input and writes verdicts to standard output, in the order they fall."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # it ends with its input
    asked, said = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a user's module may read, and print
    os.dup2(2, 1)
    if grader:
        signal.alarm(IMPORT_SECONDS)
        about, answer = load_function(grader)
        signal.alarm(0)
    else:
        about, answer = {}, _maths()
    _write(said, json.dumps(about).encode() + b"\n")
    os.set_blocking(asked, False)
    if answer is not None:
        _Parent(count, asked, said, answer).run()


def _maths() -> Callable[[dict], bytes]:
    """Returns what decides a Question, with all that is loaded that it needs."""
    import logging

    from poweropd_lite.grade.equal import same_answer
    from poweropd_lite.grade.official import official_verdict

    logging.disable(logging.WARNING)
    pairs = (("\\frac{x}{2}+1", "0.5x+1"), ("\\{1,2\\}", "2,1"), ("x>2", "(2,\\infty)"), ("y=2x", "2x-y=0"))
    for gold, answer in pairs:
        same_answer(gold, answer)  # loads sympy and builds the parser's tables, once for all workers

    def decide(asked: dict) -> bytes:
        question = Question(**asked)
        try:
            if question.official:
                same = official_verdict(question.answer, question.gold)
            else:
                same = same_answer(question.gold, question.answer, question.tolerance)
            return RIGHT if same else WRONG
        except Exception:  # sympy raises anything; it counts as wrong, but is not passed over as if it had been decided
            return UNDECIDED

    return decide


class _Parent:
    def __init__(self, count: int, asked: int, said: int, answer: Callable[[dict], bytes]) -> None:
        self.count, self.asked, self.said, self.answer, self.rest, self.out = count, asked, said, answer, b"", b""
        self.waiting: deque[bytes] = deque()
        self.idle: list[socket.socket] = []
        self.busy: dict[socket.socket, bytes] = {}
        self.since: dict[socket.socket, float] = {}  # when a busy one got its question
        self.answered: dict[socket.socket, int] = {}
        self.begun: dict[socket.socket, bytes] = {}  # of an answer whose end is still to come
        self.groups: dict[socket.socket, int] = {}  # a worker's process group, with all that a user's function started
        self.selector = selectors.DefaultSelector()
        self.selector.register(asked, selectors.EVENT_READ)

    def run(self) -> None:
        os.set_blocking(self.said, False)  # the program may be writing while this does
        telling = False
        while True:
            self._reap()
            while self.waiting and (self.idle or len(self.busy) < self.count):
                worker = self.idle.pop() if self.idle else self._fork()
                line = self.waiting.popleft()
                self.busy[worker], self.since[worker] = line[1 : line.index(b",")], time.monotonic()
                with contextlib.suppress(OSError):  # it has died in the meantime: undecided, as the pipe will say
                    worker.sendall(line + b"\n")
            if telling != bool(self.out):
                telling = not telling
                change = self.selector.register if telling else self.selector.unregister
                change(self.said, *[selectors.EVENT_WRITE] * telling)
            for key, _ in self.selector.select(POLL if self.busy else None):
                if isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)
                elif key.fileobj == self.said:
                    self.out = self.out[os.write(self.said, self.out) :]
                elif not self._read():
                    for group in self.groups.values():
                        with contextlib.suppress(OSError):
                            os.killpg(group, signal.SIGKILL)
                    return

    def _read(self) -> bool:
        chunk = os.read(self.asked, 2**20)
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        self.waiting.extend(lines)
        return bool(chunk)

    def _reap(self) -> None:
        """Looks which workers have died, whose pipe a process that they started may hold open, and ends those that catch the timers."""
        with contextlib.suppress(ChildProcessError):
            while child := os.waitpid(-1, os.WNOHANG)[0]:
                for worker in [w for w, group in self.groups.items() if group == child]:
                    self._hear(worker, ended=True)
        for worker, since in self.since.items():
            if time.monotonic() - since > WALL_SECONDS + 1:
                with contextlib.suppress(OSError):
                    os.killpg(self.groups[worker], signal.SIGKILL)

    def _hear(self, worker: socket.socket, ended: bool = False) -> None:
        heard = self.begun.pop(worker, b"")
        with contextlib.suppress(BlockingIOError):
            while not heard.endswith(b"\n"):
                try:
                    more = worker.recv(65536, socket.MSG_DONTWAIT)
                except ConnectionError:
                    more = b""
                if not more:
                    ended = True
                    break
                heard += more
        over = heard.endswith(b"\n")
        if not over and not ended:
            self.begun[worker] = heard
            return
        verdict = heard.rstrip(b"\n") if over else b""
        number = self.busy.pop(worker, None)
        self.since.pop(worker, None)
        if number is not None:
            self.out += number + b" " + (verdict or UNDECIDED) + b"\n"
        self.answered[worker] += 1
        if verdict and not ended and self.answered[worker] < QUESTIONS_A_WORKER:
            self.idle.append(worker)
            return
        if worker in self.idle:
            self.idle.remove(worker)
        self.selector.unregister(worker)
        del self.answered[worker]
        worker.close()
        with contextlib.suppress(OSError):
            os.killpg(self.groups.pop(worker), signal.SIGKILL)

    def _fork(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.setpgid(0, 0)
                ours.close()
                for other in self.answered:
                    other.close()
                os.close(self.asked)
                os.close(self.said)
                _work(theirs, self.answer)
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        with contextlib.suppress(OSError):  # it has done so itself
            os.setpgid(child, child)
        self.groups[ours] = child
        self.selector.register(ours, selectors.EVENT_READ)
        self.answered[ours] = 0
        return ours


def _work(pipe: socket.socket, answer: Callable[[dict], bytes]) -> None:
    """A worker: a line for each question, until the pipe closes."""
    import resource

    for signum in (signal.SIGTERM, signal.SIGALRM, signal.SIGPROF):
        signal.signal(signum, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    own = os.getpid()
    for line in pipe.makefile("rb"):
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        verdict = answer(json.loads(line)[1])
        if os.getpid() != own:  # a copy that the function forked
            os._exit(1)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.sendall(verdict + b"\n")


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
