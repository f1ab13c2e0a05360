"""`python -m module`, `python -c code` and `python script.py` as processes of their own that start in 50 milliseconds instead of seconds.

A server that has imported the libraries and our modules, and traced the bundled pair once for the plan, forks itself for
every command. What it forks has its own number, signals, exit code, folder and limits. Two things differ from Python started
anew: environment variables that are read at an import are those the server began with, and modules are not torn down at the
end. What a command starts by `python -m` or as a script is forked from it, in the same way.
"""

import atexit
import concurrent.futures.thread
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = [
    "torch",
    "numpy",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "safetensors.torch",
    "gguf",
    "math_verify",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.integrations.bitsandbytes",
]
LONGEST = 200_000  # bytes of one request
_FORKING = threading.Lock()  # filelock refuses a fork while another thread is in one


class Process:
    """A started command. `stdout` gives what it prints, to stderr too, unless that goes to files."""

    def __init__(self, connection: socket.socket, stdout: IO[str] | None) -> None:
        self.stdout, self.returncode, self._connection = stdout, None, connection
        started = connection.recv(100)
        if not started:
            raise RuntimeError("the server of tests/forked.py has ended; its error stands above")
        self.pid = int(started)

    def wait(self, timeout: float = 300) -> int:
        """Returns the exit code, or minus the signal that ended it; raises TimeoutError."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise TimeoutError(f"process {self.pid} has not ended after {timeout} s")
            self.returncode = int(self._connection.recv(100))
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, if the process has ended."""
        if self.returncode is None and not select.select([self._connection], [], [], 0)[0]:
            return None
        return self.wait()

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process at once."""
        self.send_signal(signal.SIGKILL)


class Server:
    """Forks commands; it imports `libraries` in their order, and `env` is what these read then."""

    def __init__(self, libraries: Sequence[str] = LIBRARIES, env: dict[str, str] | None = None) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command, handle = [sys.executable, __file__, str(theirs.fileno()), *libraries], theirs.fileno()
        self._process = subprocess.Popen(
            command, pass_fds=[handle], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        theirs.close()
        atexit.register(self.close)

    def _fork(
        self, args: tuple[str, ...], cwd: Path, env: dict | None, stdout: int, stderr: int, stdin: IO[Any] | None
    ) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"args": args, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}).encode()
        assert len(request) < LONGEST
        with open(os.devnull) as nothing:
            reads = (stdin or nothing).fileno()
            socket.send_fds(self._requests, [request], [reads, stdout, stderr, theirs.fileno()])
        theirs.close()
        return ours

    def start(self, *args: str, cwd: Path, file: IO[str] | None = None, stdin: IO[Any] | None = None) -> Process:
        """Starts `python *args`, where args are -m module, -c code or a script, and what follows them; `file` gets its output."""
        if file is not None:
            return Process(self._fork(args, cwd, None, file.fileno(), file.fileno(), stdin), None)
        reads, writes = os.pipe()
        connection = self._fork(args, cwd, None, writes, writes, stdin)
        os.close(writes)
        return Process(connection, open(reads, encoding="utf-8"))

    def run(
        self, *args: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300, input: str = ""
    ) -> subprocess.CompletedProcess:
        """Runs `python *args` to its end and returns what subprocess.run would; `input` is piped in."""
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
            tempfile.TemporaryFile("w+") as given,
        ):
            given.write(input)
            given.seek(0)
            process = Process(self._fork(args, cwd, env, out.fileno(), err.fileno(), given), None)
            try:
                process.wait(timeout)
            finally:
                process.kill()
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(args, process.returncode, out.read(), err.read())

    def close(self) -> None:
        """Ends the server and what it has forked."""
        atexit.unregister(self.close)
        self._requests.close()
        self._process.wait()


@functools.cache
def server() -> Server:
    """The server of these tests, started when first asked for."""
    return Server()


def start(*args: str, cwd: Path, file: IO[str] | None = None, stdin: IO[Any] | None = None) -> Process:
    """`Server.start`, in this environment."""
    return server().start(*args, cwd=cwd, file=file, stdin=stdin)


def run(*args: str, cwd: Path, input: str = "") -> subprocess.CompletedProcess:
    """`Server.run`, in this environment."""
    return server().run(*args, cwd=cwd, input=input)


def _import_all(libraries: Sequence[str]) -> None:
    for name in libraries:
        importlib.import_module(name)
    import poweropd_lite

    for module in pkgutil.walk_packages(poweropd_lite.__path__, "poweropd_lite."):
        if not module.name.endswith(".__main__") and ".verl" not in module.name:  # verl is not here
            importlib.import_module(module.name)


def _trace() -> None:
    """Traces the bundled pair, on tensors without memory: a process does it once, and every training begins with it."""
    import torch

    from poweropd_lite.base.config import load_config
    from poweropd_lite.plan.memory import plan_memory
    from poweropd_lite.plan.trace import traces_of

    # Autograd counts devices at its first backward. In the trace a torch built for CUDA shows it a card that is not there; it would
    # start a thread for that one, and refuse to work in whatever is forked.
    torch.ones(1, requires_grad=True).sum().backward()
    short = {"max_new_tokens": 40, "eval_max_new_tokens": 40}  # as in test_resume.py
    for changes in ({"batch_size": 8}, {"batch_size": 4}, {"batch_size": 4, **short}):
        config = load_config("bundled", **changes)
        plan_memory(config, traces_of(config, torch.float32), cuda=False)


def _serve(requests: socket.socket) -> dict:
    """Forks for every request and tells how each process ended; returns, in the new process, what it is to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this
    running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not requests:
                pid, connection = running.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                connection.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
                connection.close()
                continue
            request, handles, _, _ = socket.recv_fds(requests, LONGEST, 4)
            if not request:  # the tests have ended
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            stdin, stdout, stderr, number = handles
            connection = socket.socket(fileno=number)
            pid = os.fork()
            if pid == 0:
                selector.close()
                for each in (requests, connection, *(other for _, other in running.values())):
                    each.close()
                for pidfd in running:
                    os.close(pidfd)
                for handle, place in ((stdin, 0), (stdout, 1), (stderr, 2)):
                    os.dup2(handle, place)
                    os.close(handle)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                return json.loads(request)
            for handle in (stdin, stdout, stderr):
                os.close(handle)
            connection.send(str(pid).encode())
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, connection
            selector.register(pidfd, selectors.EVENT_READ)


def _run(args: list[str], cwd: str, env: dict[str, str]) -> None:
    """Does what Python does with its command line."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    subprocess.Popen = _Popen
    how, *rest = args
    sys.argv, sys.path[0] = args, cwd
    if how == "-m":
        sys.argv = rest
        if not hasattr(sys.modules.get(rest[0]), "__path__"):  # else runpy warns of a module that is there already
            sys.modules.pop(rest[0], None)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv = [how, *rest[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0] = str(Path(how).parent)
        runpy.run_path(how, run_name="__main__")


def _end(error: BaseException | None) -> NoReturn:
    """Ends the process as Python does, but leaves modules to the system: tearing them down takes 0.4 s."""
    code = error.code if isinstance(error, SystemExit) else None
    if error is not None and not isinstance(error, SystemExit) or isinstance(code, str):
        print(code, file=sys.stderr) if code is not None else traceback.print_exception(error)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)


def _run_to_end(args: list[str], cwd: str, env: dict[str, str]) -> NoReturn:
    raised = None
    try:
        _run(args, cwd, env)
    except BaseException as error:
        raised = error
    _end(raised)


class _Popen(subprocess.Popen):
    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        ours = isinstance(args, list) and args[0] == sys.executable and (args[1] == "-m" or args[1].endswith(".py"))
        if not ours:
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        pipes, session = rest[3:9], rest[14]
        with _FORKING:
            self.pid = os.fork()
        if self.pid:
            self._child_created = True
            return self._close_pipe_fds(*pipes)
        if session:
            os.setsid()
        concurrent.futures.thread._threads_queues.clear()  # no thread of a pool is here to be waited for,
        weakref.finalize._registry.clear()  # and no temporary folder is this process's to remove
        for handle, place in zip((pipes[0], pipes[3], pipes[5]), range(3), strict=True):
            if handle != -1:
                os.dup2(handle, place)
        null = os.open(os.devnull, os.O_RDWR)
        for handle in map(int, os.listdir("/proc/self/fd")):
            if handle > 2 and handle not in pass_fds:
                os.dup2(null, handle)  # closed, and yet not free to be another file's
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout, sys.stderr = (open(place, "w", closefd=False) for place in (1, 2))  # noqa: SIM115
        _run_to_end(args[1:], str(cwd or os.getcwd()), dict(os.environ if env is None else env))


if __name__ == "__main__":
    sys.path.insert(1, str(ROOT))
    _import_all(sys.argv[2:])
    _trace()
    gc.collect()
    gc.freeze()
    _run_to_end(**_serve(socket.socket(fileno=int(sys.argv[1]))))
