"""Where Python has no fcntl, as on Windows: every command explains itself, and refuses in one line before it loads anything."""

import json
import subprocess
import sys

import pytest

from poweropd_lite.cli import COMMANDS

LINE = (
    "error: found no {} in this Python (linux), so no run can be locked and no answer graded; poweropd_lite runs on Linux: "
    "on Windows, type the same commands in WSL ('wsl --install' sets it up)\n"
)
FLAGS = {"export": ["runs/a"], "report": ["runs/a"], "ask": ["runs/a", "1 + 1?"], "chat": ["runs/a"]}
# Hides a module and runs commands as python -m does; prints for each its exit code and what it said.
HIDDEN = """
import contextlib, io, json, runpy, sys
sys.modules[sys.argv[1]] = None
ends = []
for name, *flags in json.loads(sys.argv[2]):
    sys.argv = [name, *flags]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module(f"poweropd_lite.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            ends.append([end.code, out.getvalue(), err.getvalue()])
print(json.dumps({"ends": ends, "torch": "torch" in sys.modules}))
"""


def run_hidden(module: str, lines: list[list[str]], cwd) -> list[list]:
    code = [sys.executable, "-W", "ignore", "-c", HIDDEN, module, json.dumps(lines)]
    done = subprocess.run(code, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert not said["torch"]
    return said["ends"]


@pytest.mark.parametrize("module", ["fcntl", "resource"])
def test_without_unix_every_command_is_refused_in_one_line_and_writes_nothing(module, tmp_path):
    ends = run_hidden(module, [[name, *FLAGS.get(name, [])] for name in COMMANDS], tmp_path)
    assert ends == [[2, "", LINE.format(module)]] * len(COMMANDS)
    assert list(tmp_path.iterdir()) == []


def test_without_unix_help_and_a_wrong_flag_still_answer(tmp_path):
    asked = [[name, "--help"] for name in COMMANDS] + [["train", "--alhpa", "1"]]
    *helped, wrong = run_hidden("fcntl", asked, tmp_path)
    assert [(code or 0, error) for code, _, error in helped] == [(0, "")] * len(COMMANDS)
    assert all(
        f"usage: python -m poweropd_lite.{name} " in out for name, (_, out, _) in zip(COMMANDS, helped, strict=True)
    )
    assert wrong[::2] == [2, "error: unknown argument '--alhpa'; did you mean '--alpha'?\n"]
