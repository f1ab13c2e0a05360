"""The end of a process that has held vLLM: its own exit code, what was registered for it, and nothing left behind."""

import time
from pathlib import Path

import forked
import pytest

CODE = """
import atexit, subprocess, sys, threading
from poweropd_lite.base import ending
from poweropd_lite.cli import run_command

def main():
    ending.end_soon()
    # A child that has a child, both deaf to being asked to end, and a thread that never ends.
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    print(child.pid, child.stdout.readline().strip(), end=" ")
    threading.Thread(target=threading.Event().wait).start()
    atexit.register(lambda: print("registered", end=" "))
    if sys.argv[1] == "stuck":
        ending.SECONDS = 0.1
        atexit.register(threading.Event().wait)
    return 3

run_command(main)
"""


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("how", ["", "stuck"])
def test_the_process_ends_with_its_code_and_all_that_it_started(how, tmp_path):
    done = forked.run("-c", CODE, how, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "")
    child, grandchild, *registered = done.stdout.split()
    assert registered == ([] if how else ["registered"])  # what is stuck was registered last, so it is first
    while is_running(int(child)) or is_running(int(grandchild)):  # killed; the system takes a moment
        time.sleep(0.01)


def test_work_that_does_not_end_is_left_behind(tmp_path):
    code = (
        "import threading; from poweropd_lite.base.ending import within; done = []\n"
        "print(within(60, lambda: done.append(1)), done, within(0.01, threading.Event().wait))"
    )
    done = forked.run("-c", code, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("True [1] False\n", 0)
