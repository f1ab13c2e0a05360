"""The folder of a run: made once, locked by one process, found again by --resume."""

import os
import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.base.config_files import changed, dump_yaml
from poweropd_lite.base.errors import UserError, cut
from poweropd_lite.base.files import check_writable, free_folder, read_json, refuse_full, try_lock, write_text
from poweropd_lite.base.teachers import BUNDLED, SELF, moved
from poweropd_lite.run.checkpoint import checkpoints, recover

INPUTS = "inputs.json"  # what a run was fed, and where
FILES = ("student", "teacher", "teacher_tokenizer", "data", "adapter")  # settings that may name some


class RunFolder:
    """An open run folder. The lock goes with the process, so a killed run leaves none behind."""

    def __init__(self, path: Path) -> None:
        self.path, lock = path, try_lock(path / ".lock", "--output")
        if lock is None:
            raise UserError(f"another process is training in {path}; wait for it, or type another --output")
        self._lock = lock

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)  # which gives the lock back

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def steps_saved(self) -> int:
        """How many steps the latest checkpoint holds; 0 without one."""
        saved = checkpoints(self.checkpoints)
        return int(saved[-1].name.removeprefix("step_")) if saved else 0


def check_output(config: Config) -> None:
    """Raises UserError if the run's folder could not be made: asked before anything loads."""
    if config.output is not None:
        path = Path(config.output)
        refuse_full(
            path,
            "--output",
            f"a run never writes over another (--resume {shlex.quote(str(path))} goes on with that one)",
        )
        check_writable(path, "--output")
    elif Path("runs").exists() and not Path("runs").is_dir():
        raise UserError("runs is a file, where new run folders would go; type --output with the name of a new folder")
    else:
        check_writable(Path("runs"), "--output")


def new_run(config: Config) -> RunFolder:
    """Makes and locks the folder of a new run and writes config.yaml into it.

    Without `config.output` it is runs/REWARD-seedN, or runs/DATA-REWARD-seedN of a file or folder of data, with a number behind it
    if that is taken.
    """
    check_output(config)
    if config.output is not None:
        path = Path(config.output)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't make the run folder {path}: {error.strerror}; type another --output") from None
    else:
        words = re.sub(r"[^\w.=-]", "-", _of_data(config.data) + config.reward_label.replace(" ", ""))
        path = free_folder(Path("runs"), f"{words}-seed{config.seed}")
    run = RunFolder(path)
    write_text(path / "config.yaml", dump_yaml(changed(config, output=str(path))))
    return run


def _of_data(data: str) -> str:
    """The name of a file or folder of data, of at most 60 bytes and no hidden one, for a run folder's own; "" of other data."""
    if data == BUNDLED or not os.path.exists(data):
        return ""
    place = Path(data).resolve()
    name = (place.name if place.is_dir() else place.stem).lstrip(".-")
    return f"{os.fsencode(name)[:60].decode(errors='ignore')}-"


def whole_names(run: Path, config: Config) -> dict[str, str]:
    """Returns by setting the files and folders that a run's config names relatively, by their whole paths.

    They are looked for in the folder in which it was trained last; {} where that is not known, or is this one.
    """
    try:
        home = os.path.normpath(run.absolute() / str(read_json(run / INPUTS)["home"]))
    except (OSError, ValueError, LookupError, TypeError):  # a run of an earlier version has none
        return {}
    if home == os.getcwd():
        return {}

    def whole(name: str) -> str:
        known = name in ("", BUNDLED, SELF) or os.path.isabs(name)
        return name if known or not os.path.exists(path := os.path.normpath(os.path.join(home, name))) else path

    found = {name: whole(value) for name in FILES if (value := getattr(config, name))}
    words = [word.strip() for word in (config.eval_benchmarks or "").split(",")]  # a known name has no dot and no slash
    if (scored := [whole(word) if set("./") & set(word) else word for word in words]) != words:
        found["eval_benchmarks"] = ",".join(scored)
    return {name: value for name, value in found.items() if value != getattr(config, name)}


def held_out_by(run: Path, config: Config) -> dict[str, Any] | None:
    """Returns what tells the prompts that a run held out: how many, and the digest of all others, which it was trained on.

    None where that is not known.
    """
    try:
        return {"hold_out": config.hold_out, "trained_on": str(read_json(run / INPUTS)["fed"]["prompts"]["sha256"])}
    except (OSError, ValueError, LookupError, TypeError):  # a run of an earlier version
        return None


def open_run(folder: str | Path, **changes: Any) -> tuple[RunFolder, Config]:
    """Locks the folder of an earlier run; returns it and its config, with `changes` in place of its own.

    Raises UserError for a folder that is no run, or for new steps under a schedule that depends on their number.
    """
    path = Path(folder)
    if not os.path.isfile(path / "config.yaml"):  # which is no error for a name too long
        inside = [parent for parent in path.parents if os.path.isfile(parent / "config.yaml")]
        hint = f"did you mean --resume {inside[0]}?" if inside else "type --resume with one"
        raise UserError(f"{cut(str(path))} is not a run folder (it has no config.yaml); {hint}")
    before = load_config(path / "config.yaml")
    config = load_config(path / "config.yaml", **{**whole_names(path, before), **changes})
    if changes.get("teacher", before.teacher) != before.teacher and not moved(before.teacher, config.teacher):
        raise UserError(
            f"the run in {path} learns from {before.teacher}, and --resume takes another address of a served teacher alone; "
            "leave out --teacher"
        )
    if config.steps != before.steps and config.lr_schedule != "constant":
        raise UserError(
            f"the run in {path} brings its learning rate to zero at step {before.steps} (lr_schedule "
            f"{config.lr_schedule}), so --steps can't change; leave it out"
        )
    with ExitStack() as held:
        run = held.enter_context(RunFolder(path))
        recover(run.checkpoints)
        saved = checkpoints(run.checkpoints)
        if config.steps < run.steps_saved:
            taken = f"the run in {path} has taken {run.steps_saved} steps already"
            raise UserError(f"{taken}; type --steps with a larger number")
        if not saved and (path / "summary.json").exists():
            raise UserError(
                f"{path} has a summary but no checkpoint to go on from; start a new run with another --output"
            )
        if not saved:
            print(f"{path} has no checkpoint yet: starting at step 0")
        held.pop_all()  # from here on the caller gives it back
    return run, changed(config, output=str(path))
