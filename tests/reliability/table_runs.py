"""Bad inputs of the last kinds: run folders and what lies in them, paths, and the environment."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refusing import EVALUATE, TRAIN, Case, Make, files

STATES: dict[str, Any] = {
    "a list": [],
    "a number": 5,
    "null": None,
    "nothing": {},
    "a state that is a list": {"state": []},
    "a state with an unknown key": {"state": {"no_such": 1}},
    "a step that is a text": {"state": {"step": "x"}},
    "a step that is null": {"state": {"step": None}},
    "a step of -1": {"state": {"step": -1}},
    "an enormous step": {"state": {"step": 10**12}},
    "a step of 1.5": {"state": {"step": 1.5}},
    "random states of large numbers": {"random": {"python": [3, [1], None], "numpy": ["MT19937", 2**31, 0, 0.0]}},
    "skipped steps that are a text": {"state": {"skipped_lately": "x"}},
    "evaluations that are a list": {"state": {"evaluations": [1]}},
    "seconds that are texts": {"state": {"seconds": {"train": "x"}}},
    "a budget that is a text": {"state": {"token_budget": "x"}},
    "a gap that is a list": {"state": {"first_gap": []}},
    "a config that is a list": {"config": []},
    "a config that is null": {"config": None},
    "an optimizer that is a list": {"optimizer": []},
    "an optimizer of others": {"optimizer": {"no.such.weight": {"step": 1}}},
    "random states that are a list": {"random": []},
    "random states of others": {"random": {"python": [3, [1], None], "numpy": ["X", 1]}},
    "a scaler that is a list": {"scaler": [1]},
}


def state(value: Any) -> Make:
    """Puts a value in the place of state.json (a mapping: into it) of every checkpoint, whose manifest then fits."""

    def make(folder: Path) -> None:
        from poweropd_lite.base.files import MANIFEST, write_manifest

        for path in (folder / "run" / "checkpoints").iterdir():
            file, new = path / "state.json", value
            if isinstance(value, dict) and value:
                old = json.loads(file.read_text())
                merged = {k: {**old[k], **v} if isinstance(v, dict) and k == "state" else v for k, v in value.items()}
                new = old | merged
            file.write_text(json.dumps(new))
            write_manifest(path, [each for each in path.iterdir() if each.name != MANIFEST])

    return make


def changed(file: str, content: str | bytes | Callable[[str], str]) -> Make:
    """Puts a text in the place of a file of the run."""

    def make(folder: Path) -> None:
        path = folder / "run" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content(path.read_text()) if callable(content) else content
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return make


def newer_manifest(folder: Path) -> None:
    for path in (folder / "run" / "checkpoints").iterdir():
        (path / "manifest.json").write_text('{"version": 99, "files": []}')


def odd_checkpoint(folder: Path) -> None:
    (folder / "run" / "checkpoints" / "step_2x").mkdir()


def checkpoint_file(folder: Path) -> None:
    shutil.rmtree(folder / "run" / "checkpoints")
    (folder / "run" / "checkpoints").write_text("x")


METRICS: dict[str, tuple[str, str | bytes]] = {
    "metrics that are nothing": ("metrics.jsonl", ""),
    "metrics that are lists": ("metrics.jsonl", "[]\n"),
    "metrics that are texts": ("metrics.jsonl", '{"step": 1, "tokens/loss": "x"}\n'),
    "metrics of brackets": ("metrics.jsonl", "[" * 100_000 + "\n"),
    "metrics not UTF-8": ("metrics.jsonl", b"\xff\xfe\n"),
    "metrics of an enormous step": ("metrics.jsonl", '{"step": 1e999, "tokens/loss": 1, "time/step": 1}\n'),
    "metrics of a long number": ("metrics.jsonl", '{"step": ' + "9" * 5000 + "}\n"),
    "tokens that are nothing": ("tokens.jsonl", "{}\n"),
    "samples that are nothing": ("samples.jsonl", "{}\n"),
    "samples of numbers": ("samples.jsonl", '{"step": 1, "kind": 1, "finish": 1, "prompt": 1, "completion": 1}\n'),
    "a summary that is a list": ("summary.json", "[]"),
    "a summary of brackets": ("summary.json", "[" * 100_000),
    "results that are a list": ("eval/step_000004/results.json", "[]"),
    "results of no step": ("eval/step_x/results.json", "{}"),
}
CONFIGS = {
    "a config of another version": lambda text: text + "no_such_setting: 1\n",
    "a config that is nothing": lambda text: "",
    "a config of words": lambda text: "x",
    "a config with a bad value": lambda text: text.replace("alpha: ", "alpha: -"),
    "a config with a long name": lambda text: text.replace("student: bundled", f"student: {'x' * 300}"),
}


def cut_settings(folder: Path) -> None:
    (folder / "e").mkdir()
    (folder / "e" / "settings.json").write_text('{"settings": {}')


def no_settings(folder: Path) -> None:
    (folder / "e").mkdir()
    (folder / "e" / "settings.json").write_text("[]")


def bad_samples(folder: Path) -> None:
    (folder / "e").mkdir()
    about = {"benchmarks": {"x": {"problems": 1, "longest": 1, "hash": "x"}}, "whole": {}, "sources": {}}
    (folder / "e" / "settings.json").write_text(json.dumps({"settings": {"n": 1}, "about": about}))
    (folder / "e" / "x.jsonl").write_text("{}\n{}\n")


def locked(folder: Path) -> None:
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0o500)


def a_file(name: str) -> Make:
    return files(**{name.replace(".", "__"): "x"})


LONG = "x" * 300
PATHS = [
    Case("output: a file", f"{TRAIN} --output taken", ("taken",), a_file("taken")),
    Case("output: under a file", f"{TRAIN} --output taken/run", ("taken",), a_file("taken")),
    Case("output: full", f"{TRAIN} --output full", ("not empty",), a_file("full/x")),
    Case("output: 300 letters", f"{TRAIN} --output {LONG}", ("--output",)),
    Case("output: a path of 5,000 letters", f"{TRAIN} --output {'/'.join(['x' * 99] * 50)}", ("--output",)),
    Case("output: /proc", f"{TRAIN} --output /proc/run", ("--output",)),
    Case("output: /dev/null", f"{TRAIN} --output /dev/null/run", ("--output",)),
    Case("output: a dangling link", f"{TRAIN} --output link", ("--output",), lambda f: (f / "link").symlink_to("/proc/no")),
    Case("output: a link to itself", f"{TRAIN} --output link", ("--output",), lambda f: (f / "link").symlink_to("link")),
    Case("output: control characters", f"{TRAIN} --output '\x1b]0;x\x07' --alpha 0", ("alpha",)),
    Case("output: runs is a file", TRAIN.replace("--output out", ""), ("--output",), a_file("runs")),
    Case("evaluate's output: a file", f"{EVALUATE} --model bundled-student --output taken", ("--output",), a_file("taken")),
    Case("evaluate's output: under a file", f"{EVALUATE} --model bundled-student --output taken/x", ("--output",), a_file("taken")),
    Case("evaluate's output: full", f"{EVALUATE} --model bundled-student --output full", ("full",), a_file("full/x")),
    Case("evaluate's output: 300 letters", f"{EVALUATE} --model bundled-student --output {LONG}", ("--output",)),
    Case("evaluate's output: /proc", f"{EVALUATE} --model bundled-student --output /proc/x", ("--output",)),
    Case("export's output: full", "export bundled-student --to merged-16bit --output full", ("full",), a_file("full/x")),
    Case("export's output: under a file", "export bundled-student --to merged-16bit --output taken/x", ("--output",), a_file("taken")),
    Case("export's output: 300 letters", f"export bundled-student --to merged-16bit --output {LONG}", ("--output",)),
    Case("export's output: /proc", "export bundled-student --to merged-16bit --output /proc/x", ("--output",)),
    Case("report's output: a file", "report run --output taken", ("--output",), a_file("taken"), needs_run=True),
    Case("report's output: /proc", "report run --output /proc/x", ("--output",), needs_run=True),
    Case("report's output: 300 letters", f"report run --output {LONG}", ("--output",), needs_run=True),
    Case("reproduce's output: a file", "reproduce --preset smoke --output taken", ("--output",), a_file("taken")),
    Case("reproduce's output: /proc", "reproduce --preset smoke --output /proc/x", ("--output",)),
    Case("plan's output: 300 letters", f"plan --config bundled --output {LONG}", ("--output",)),
    Case("a model of 300 letters", f"{EVALUATE} --model {LONG}", ("x",)),
    Case("a model of 5,000 letters", f"{EVALUATE} --model {'x/' * 2500}", ("x",)),
    Case("a model that is a file", f"{EVALUATE} --model problems.jsonl", ("problems.jsonl",)),
    Case("a model that is empty", f"{EVALUATE} --model m", ("m",), lambda f: (f / "m").mkdir()),
    Case("a model that is a link to itself", f"{EVALUATE} --model m", ("m",), lambda f: (f / "m").symlink_to("m")),
    Case("a model of the hub", f"{EVALUATE} --model no/such-model", ("no/such-model",)),
    Case("a model of no name", f"{EVALUATE} --model '../..'", ("..",)),
    Case("a model with a null byte's text", f"{EVALUATE} --model 'a%00b'", ("a%00b",)),
    Case("a student of the hub", f"{TRAIN} --student no/such-model", ("no/such-model", "--student")),
    Case("a student of 300 letters", f"{TRAIN} --student {LONG}", ("--student",)),
    Case("a student that is a file", f"{TRAIN} --student problems.jsonl", ("--student",)),
    Case("a student that is empty", f"{TRAIN} --student m", ("--student",), lambda f: (f / "m").mkdir()),
    Case("a student that is a run", f"{TRAIN} --student run", ("is a run",), needs_run=True),
    Case("resume: a file", "train --resume problems.jsonl", ("not a run folder",)),
    Case("resume: 300 letters", f"train --resume {LONG}", ("not a run folder",)),
    Case("resume: a checkpoint", "train --resume run/checkpoints/step_000004", ("--resume run",), needs_run=True),
    Case("resume: other settings", "train --resume run --alpha 2", ("--alpha",), needs_run=True),
    Case("resume: fewer steps", "train --resume run --steps 2", ("--steps",), needs_run=True),
    Case("resume: other data", "train --resume run --data problems.jsonl --steps 5", ("--accept-changes",), needs_run=True),
    Case("llama.cpp: a file", "export bundled-student --to gguf --gguf-type q4_k_m --llama-cpp problems.jsonl", ("llama",)),
]  # fmt: skip
ENVIRONMENT = [
    Case("no home", f"{TRAIN} --alpha 0", ("alpha",), env={"HOME": "/nowhere"}),
    Case("no locale", f"{TRAIN} --data pröblem.jsonl", ("--data",), env={"LC_ALL": "C", "PYTHONUTF8": "0"}),
    Case("ASCII output", f"{TRAIN} --data pröblem.jsonl", ("--data",), env={"PYTHONIOENCODING": "ascii"}),
    Case("no columns", f"{TRAIN} --alpha 0", ("alpha",), env={"COLUMNS": "0", "TERM": "dumb"}),
    Case("negative columns", f"{TRAIN} --alpha 0", ("alpha",), env={"COLUMNS": "-7"}),
    Case("warnings are errors", f"{TRAIN} --alpha 0", ("alpha",), env={"PYTHONWARNINGS": "error"}),
    Case("no temporary folder", f"{TRAIN} --alpha 0", ("alpha",), env={"TMPDIR": "/nowhere"}),
    Case("a token of odd letters", "export bundled-student --to merged-16bit --push me/x --output out", ("HF_TOKEN",),
         env={"HF_TOKEN": "höf \x07"}),
    Case("an empty token", "export bundled-student --to merged-16bit --push me/x --output out", ("HF_TOKEN",), env={"HF_TOKEN": ""}),
    Case("a cache that is a file", f"{TRAIN} --student no/such-model", ("--student",), env={"HF_HOME": "/dev/null/x"}),
]  # fmt: skip


def cases() -> list[Case]:
    """Returns the run folders, paths and environments that are refused."""
    found = []
    for name, value in STATES.items():
        found.append(
            Case(f"checkpoint: {name}", "train --resume run --steps 5", ("checkpoint",), state(value), needs_run=True)
        )
    for name, (file, text) in METRICS.items():
        found.append(Case(f"report: {name}", "report run", ("run",), changed(file, text), needs_run=True))
    for name, change in CONFIGS.items():
        make = changed("config.yaml", change)
        readers = ("report run",) if "nothing" not in name and "long" not in name else ()  # which needs no model
        for command in ("train --resume run --steps 5", "evaluate --model run --output out", *readers):
            found.append(Case(f"{command.split()[0]}: {name}", command, (), make, needs_run=True))
    resume, run = "train --resume run --steps 5", {"needs_run": True}
    found += [
        Case("checkpoint: a manifest of another version", resume, ("checkpoint",), newer_manifest, **run),
        Case("checkpoint: a folder of an odd name", resume, (), odd_checkpoint, code=0, **run),
        Case("checkpoint: a file in place of the folder", resume, ("checkpoint",), checkpoint_file, **run),
        Case("inputs that are nothing", resume, ("inputs.json",), changed("inputs.json", ""), **run),
        Case("inputs that are a list", resume, ("inputs.json",), changed("inputs.json", "[]"), **run),
        Case("inputs of brackets", resume, ("inputs.json",), changed("inputs.json", "[" * 100_000), **run),
        Case("an adapter that was changed", "evaluate --model run --output out", ("--resume run",),
             changed("adapter/adapter_model.safetensors", b"x"), **run),
        Case("an adapter's manifest of brackets", "evaluate --model run --output out", ("manifest.json",),
             changed("adapter/manifest.json", "[" * 100_000), **run),
        Case("an adapter's reference that is a list", "export run --to adapter --output out", ("reference.json",),
             lambda f: [changed("adapter/reference.json", "[]")(f), (f / "run/adapter/manifest.json").unlink()], **run),
        Case("settings of an evaluation cut", EVALUATE.replace("--output out", "--output e") + " --model bundled-student", ("settings.json",), cut_settings),
        Case("settings of an evaluation that are a list", EVALUATE.replace("--output out", "--output e") + " --model bundled-student", ("settings.json",), no_settings),
        Case("regrade: settings cut", "evaluate --regrade e", ("settings.json",), cut_settings),
        Case("regrade: samples of nothing", "evaluate --regrade e", ("x.jsonl",), bad_samples),
        Case("report: the teacher's results are none", "report run --teacher problems.jsonl", ("--teacher",), **run),
        Case("report: an accuracy of 900", "report run --teacher 900", ("teacher",), **run),
        Case("report: an accuracy of nan", "report run --teacher nan", ("teacher",), **run),
        Case("report: an unknown baseline", "report run --baseline x", ("baseline",), **run),
        Case("report: too many labels", "report run --labels a,b,c", ("label",), **run),
        Case("report: one run twice", "report run run", ("twice",), **run),
    ]  # fmt: skip
    return [*found, *PATHS, *ENVIRONMENT]
