"""Processes that decide whether answers are right, each ended after one second on one answer.

Computer algebra can be made to run for ever (9^9^9^9), eat all memory or crash, so it happens elsewhere: a small parent
that has math-verify loaded, and nothing of torch, forks workers and hands out the questions. A worker's time is
the kernel's to keep: a timer that nobody catches kills it. The second is of processor time, so that a busy machine gives
the same verdicts; ten seconds by the clock end what waits for something.

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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SECONDS = 1.0  # of processor time for one question
WALL_SECONDS = 10.0  # by the clock
MEMORY = 2 * 2**30  # bytes of address space a worker may have; macOS refuses such a limit (cpython issue 78783)
QUESTIONS_A_WORKER = 2000  # then a fresh one: sympy's caches grow
IN_FLIGHT = 64
RIGHT, WRONG, UNDECIDED = b"1", b"0", b"?"


@dataclass(frozen=True)
class Question:
    """One thing to be decided: is `answer` the `gold` one? `official` asks the released code's procedure instead."""

    gold: str
    answer: str
    tolerance: float | None = None
    official: bool = False  # `answer` is a whole completion then


class Judges:
    """A started parent with its workers; safe to ask from any thread. One serves the whole program (`judges()`)."""

    def __init__(self, workers: int) -> None:
        self.workers, self._lock, self._owner = workers, threading.Lock(), os.getpid()
        self._start()

    def decide(
        self, questions: Sequence[Question], tick: Callable[[int, int], object] = lambda done, total: None
    ) -> list[bool | None]:
        """Returns for each question whether it is so, or None if that could not be decided in time.

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
            return [{RIGHT: True, WRONG: False}.get(verdicts[i]) for i in range(len(questions))]

    def _ask(self, questions: Sequence[Question], waiting: deque, verdicts: dict[int, bytes], tick: Callable) -> None:
        asked = 0
        while waiting or asked:
            while waiting and asked < IN_FLIGHT:
                number = waiting.popleft()
                self._to.write(json.dumps([number, asdict(questions[number])]).encode() + b"\n")
                asked += 1
            self._to.flush()
            line = self._from.readline()
            if not line:
                raise EOFError
            number, verdict = line.split()
            verdicts[int(number)] = verdict
            asked -= 1
            tick(len(verdicts), len(questions))

    def _start(self) -> None:
        if not hasattr(os, "fork"):
            raise RuntimeError(
                f"computer algebra is done in forked processes, and this system ({sys.platform}) has no fork: grade on "
                "Linux, or in WSL on Windows"
            )
        code = "import sys; sys.path.insert(0, sys.argv[1]); from poweropd_lite.grade.judges import serve; serve(int(sys.argv[2]))"
        command = [sys.executable, "-P", "-c", code, str(Path(__file__).parents[2]), str(self.workers)]
        # A session of its own: Ctrl-C is the run's to handle.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout
        if self._from.readline() != b"ready\n":
            raise RuntimeError(
                "the grading processes did not start; is math-verify installed (pip install math-verify)?"
            )

    def close(self) -> None:
        """Ends the processes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                pipe.close()


_running: Judges | None = None
_starting = threading.Lock()


def judges() -> Judges:
    """Returns the program's judges, started at the first call (about a second)."""
    global _running
    with _starting:
        if _running is None or _running._owner != os.getpid():  # a forked child must not share the pipes
            count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            _running = Judges(min(count, 16))
        return _running


def serve(count: int) -> None:
    """The parent: reads questions from standard input and writes verdicts to standard output, in the order they fall."""
    import logging

    from poweropd_lite.grade.equal import same_answer

    logging.disable(logging.WARNING)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # it ends with its input
    pairs = (("\\frac{x}{2}+1", "0.5x+1"), ("\\{1,2\\}", "2,1"), ("x>2", "(2,\\infty)"), ("y=2x", "2x-y=0"))
    for gold, answer in pairs:
        same_answer(gold, answer)  # loads sympy and builds the parser's tables, once for all workers
    os.set_blocking(0, False)
    _write(1, b"ready\n")
    _Parent(count).run()


class _Parent:
    def __init__(self, count: int) -> None:
        self.count, self.rest = count, b""
        self.waiting: deque[bytes] = deque()
        self.idle: list[socket.socket] = []
        self.busy: dict[socket.socket, bytes] = {}
        self.answered: dict[socket.socket, int] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(0, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            while self.waiting and (self.idle or len(self.busy) < self.count):
                worker = self.idle.pop() if self.idle else self._fork()
                line = self.waiting.popleft()
                self.busy[worker] = line[1 : line.index(b",")]
                with contextlib.suppress(OSError):  # it has died in the meantime: undecided, as the pipe will say
                    worker.sendall(line + b"\n")
            for key, _ in self.selector.select():
                if isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)
                elif not self._read():
                    return

    def _read(self) -> bool:
        chunk = os.read(0, 2**20)
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        self.waiting.extend(lines)
        return bool(chunk)

    def _hear(self, worker: socket.socket) -> None:
        try:
            verdict = worker.recv(1)
        except OSError:
            verdict = b""
        number = self.busy.pop(worker, None)
        if number is not None:
            _write(1, number + b" " + (verdict or UNDECIDED) + b"\n")
        self.answered[worker] += 1
        if verdict and self.answered[worker] < QUESTIONS_A_WORKER:
            self.idle.append(worker)
            return
        if worker in self.idle:
            self.idle.remove(worker)
        self.selector.unregister(worker)
        del self.answered[worker]
        worker.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def _fork(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            code = 1
            try:
                ours.close()
                for other in self.answered:
                    other.close()
                os.close(0)
                _work(theirs)
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        self.selector.register(ours, selectors.EVENT_READ)
        self.answered[ours] = 0
        return ours


def _work(pipe: socket.socket) -> None:
    """A worker: one byte for each question, until the pipe closes."""
    import resource

    from poweropd_lite.grade.equal import same_answer
    from poweropd_lite.grade.official import official_verdict

    for signum in (signal.SIGTERM, signal.SIGALRM, signal.SIGPROF):
        signal.signal(signum, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in pipe.makefile("rb"):
        question = Question(**json.loads(line)[1])
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            if question.official:
                same = official_verdict(question.answer, question.gold)
            else:
                same = same_answer(question.gold, question.answer, question.tolerance)
            verdict = RIGHT if same else WRONG
        except Exception:  # sympy raises anything; it counts as wrong, but is not passed over as if it had been decided
            verdict = UNDECIDED
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.sendall(verdict)


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
