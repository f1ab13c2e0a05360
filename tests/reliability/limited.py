"""Runs a command under a limit of processor time and of memory: `python limited.py train --alpha 0`."""

import resource
import runpy
import sys

SECONDS = 10  # of processor time
MEMORY = 4 * 2**30  # bytes beyond what is mapped at the start; of a fresh process PyPI's torch maps 3.1 of them


def limit() -> None:
    """Has the kernel end this process at SECONDS, and refuse it more memory than MEMORY."""
    used = resource.getrusage(resource.RUSAGE_SELF)  # a forked process begins at nothing
    seconds = SECONDS + int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


if __name__ == "__main__":
    limit()
    module = f"poweropd_lite.{sys.argv[1]}"
    sys.argv = [module, *sys.argv[2:]]
    if not hasattr(sys.modules.get(module), "__path__"):  # as forked.py does
        sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
