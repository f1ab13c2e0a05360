"""The Dockerfile against what the package is built from: no card and no docker is needed for that."""

import json
import re
import tomllib
from pathlib import Path

from conftest import run_here

from poweropd_lite.cli import main

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()


def said(instruction: str) -> list[str]:
    return [line.removeprefix(instruction + " ") for line in LINES if line.startswith(instruction + " ")]


def test_what_the_wheel_is_made_of_is_copied_before_it_is_made():
    """By pyproject.toml: the readme and licence of its metadata, the file of its version, its packages and what is put in them."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        settings = tomllib.load(file)
    project, hatch = settings["project"], settings["tool"]["hatch"]
    wheel = hatch["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        project["readme"],
        *project["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    made = LINES.index("RUN pip install --no-cache-dir --no-deps .")
    copied = {name for line in LINES[:made] if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert needed <= copied and Path(hatch["version"]["path"]).parts[0] in copied
    assert all((ROOT / name).exists() for name in copied)
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in sent and copied == {line[1:] for line in sent if line.startswith("!")}


def test_the_pins_are_installed_first_and_on_the_python_they_were_resolved_for():
    pins = LINES.index("RUN pip install --no-cache-dir -r requirements.txt")
    assert LINES.index("COPY requirements.txt ./") < pins < LINES.index("COPY poweropd_lite poweropd_lite")
    head = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()[0]
    (python,) = re.findall(r"FROM python:(3\.\d+)-", "\n".join(LINES))
    assert f"Python {python}" in head


def test_it_starts_a_command_that_there_is():
    with open(ROOT / "pyproject.toml", "rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    (entry,), command = (json.loads(said(word)[0]) for word in ("ENTRYPOINT", "CMD"))
    assert scripts[entry] == "poweropd_lite.cli:console"
    done = run_here(main, *command)
    assert done.returncode == 0 and "torch" in done.stdout, done.stderr
