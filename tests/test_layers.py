"""The house's walls: imports run one way, functions' imports included; commands parse without torch; what is long is split."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import poweropd_lite
from poweropd_lite.base.errors import UserError
from poweropd_lite.cli import main

PACKAGE = Path(__file__).parent.parent / "poweropd_lite"
# From left to right; a room never imports one that stands further right, nor another beside it.
FLOORS = [
    ["rewards"],
    ["base", "grade", "kernels"],
    ["method", "problems", "cli"],
    ["models"],
    ["checks", "engines"],
    ["run"],
    ["evaluate", "plan"],  # which the other commands may use
    ["train", "export", "doctor", "report", "reproduce", "rehearse", "verl"],
]
FACES = {"audit", "advise", "ask", "chat", "config", "tiny"}  # hand on names, or stand apart
COMMANDS = ["train", "evaluate", "export", "doctor", "plan", "audit", "advise", "report", "reproduce", "ask", "chat"]


def imports(file: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("poweropd_lite."):
            inside = PACKAGE.parent / node.module.replace(".", "/")
            names = [a.name for a in node.names if (inside / f"{a.name}.py").is_file()]
            found |= {f"{node.module}.{name}" for name in names} or {node.module}
    return found


def test_imports_run_one_way():
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imports(file):
            there = module.split(".")[1]
            if here in floor and there != here and not (there in floor and floor[there] < floor[here]):
                wrong.append(f"{file.relative_to(PACKAGE)} imports {module}")
    assert wrong == []


def test_no_file_imports_itself_in_a_circle():
    files = {".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts): imports(f) for f in PACKAGE.rglob("*.py")}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        for other in files.get(module, set()) if module not in done else ():
            visit(other, [*path, module])
        done.add(module)

    for module in files:
        visit(module, [])


def test_the_core_imports_at_the_top_but_transformers_which_must_come_after_unsloth():
    code = "import poweropd_lite.train.start, sys, json; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {name.split(".")[0] for name in json.loads(out)}
    assert "torch" in heavy and not heavy & {"transformers", "peft", "bitsandbytes", "vllm", "datasets", "matplotlib"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_torch(command):
    code = (
        f"import sys, json\nfrom poweropd_lite.cli import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit as end: assert end.code in (0, None), end.code\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"poweropd_lite.{command}" in done.stdout and json.loads(done.stdout.splitlines()[-1]) == []


NAMES = {
    "": ["load_config"],
    ".train": ["train"],
    ".evaluate": ["evaluate", "load_eval_config"],
    ".export": ["export", "load_export_config"],
    ".report": ["report"],
}


def test_the_functions_of_the_commands_come_from_their_packages_without_torch():
    """Also when every module, those of a like name too, was imported before."""
    imported = "\n".join(f"from poweropd_lite{room} import {', '.join(names)}" for room, names in NAMES.items())
    code = (
        "import poweropd_lite, sys, json\nassert 'pydantic' not in sys.modules and 'load_config' in dir(poweropd_lite)\n"
        f"{imported}\nassert load_config('bundled').student == 'bundled' and report.__name__ == 'report'\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    for file in PACKAGE.rglob("*.py"):
        if not file.stem.startswith("__") and file.parent.name != "verl":  # which verl imports, where it is installed
            importlib.import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    for room, names in NAMES.items():
        package = importlib.import_module(f"poweropd_lite{room}")
        assert all(inspect.isfunction(getattr(package, name)) for name in names)
    assert not hasattr(poweropd_lite, "load_confi")


def test_without_a_command_they_are_listed(capsys):
    for argv in ([], ["--help"]):
        assert main(argv) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:-2]] == COMMANDS
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"poweropd_lite {poweropd_lite.__version__}\n"
    with pytest.raises(UserError, match="no command named 'chatt'; did you mean 'chat'?"):
        main(["chatt"])


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def test_what_must_be_read_in_one_sitting_is_short():
    assert sum(map(lines, (PACKAGE / "method").glob("*.py"))) <= 800
    assert lines(PACKAGE / "train" / "loop.py") <= 120
    assert lines(PACKAGE.parent / "examples" / "loop.py") <= 100
    assert [str(file) for file in PACKAGE.rglob("*.py") if lines(file) > 400] == []
    faces = [
        PACKAGE / "ask.py",
        PACKAGE / "chat.py",
        PACKAGE / "config.py",
        *PACKAGE.glob("audit/*.py"),
        *PACKAGE.glob("advise/*.py"),
    ]
    assert [str(file) for file in faces if lines(file) > 20] == []
