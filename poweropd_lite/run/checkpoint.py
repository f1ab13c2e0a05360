"""Saving and resuming a run bit for bit: trained weights, optimizer, every random state, and where the run stands.

A checkpoint is a folder `checkpoints/step_000050/` of safetensors and JSON; no pickle. It appears whole or not at all, and
its manifest, written last, holds a digest of each file: one flipped bit is found, and the checkpoint before is taken.
"""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch.amp import GradScaler
from torch.optim import Optimizer

from poweropd_lite.base.config import Config, marked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import changed_since, free_folder, read_json, whole_folder, write_json, write_manifest
from poweropd_lite.base.teachers import moved
from poweropd_lite.models.student import Student
from poweropd_lite.run.session import Session

PARTS = ("trained", "optimizer", "random")  # files of tensors, beside state.json
OF_ITS_SHAPE = ("exp_avg", "exp_avg_sq", "state1", "state2")  # what AdamW and AdamW8bit keep of each element


class Damaged(UserError):
    """A checkpoint that does not hold what was saved."""


@dataclass
class RunState:
    """Where a run stands, beyond its weights. Data order, sampling and learning rate follow from `step`."""

    step: int = 0  # optimizer steps taken or dropped
    evaluated: int = -1  # the last step that was evaluated
    skipped: int = 0  # steps dropped: loss, gradient or weights out of bounds, or no token in the loss
    skipped_in_a_row: int = 0
    skipped_lately: list[int] = field(default_factory=list)  # which of the last fifty steps
    tokens: int = 0  # sampled tokens, all steps
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)  # by step, as text
    seconds: dict[str, float] = field(default_factory=dict)  # by phase, over all sittings
    peak_gib: float = 0.0
    token_budget: int = 0  # of a micro-batch, once memory ran out; 0 is the config's
    out_of_memory: int = 0  # how often it was halved
    first_gap: float | None = None  # mean gap between engine and trainer at the first step, nats
    processes: int = 1  # that trained together in the last sitting

    def spend(self, phase: str, seconds: float) -> None:
        """Adds to the seconds of a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


class Checkpoints:
    """The checkpoints of a run's folder, and which state of the run is in the latest."""

    def __init__(self, folder: Path, session: Session) -> None:
        self.folder, self.session = folder, session
        self.saved: tuple[int, int] | None = None  # steps taken and the last that was evaluated, as they were saved

    def resume(self, say: Callable[[str], None]) -> RunState:
        """Restores the latest checkpoint that is whole and returns where the run stands: at its start, if there is none.

        Damaged ones behind it are said and set aside. Raises UserError if all are damaged.
        """
        damaged: dict[Path, Damaged] = {}
        s = self.session
        for path in reversed(checkpoints(self.folder)):
            try:
                state = load_checkpoint(path, s.student, s.optimizer, s.scaler, s.config)
            except Damaged as error:
                damaged[path] = error
                continue
            for bad, fault in damaged.items():
                say(f"{fault}; set aside as {set_aside(bad).name}, and {path.name} is taken")
            self.saved = state.step, state.evaluated
            return state
        if damaged:
            found = "\n".join(map(str, damaged.values()))
            raise UserError(
                f"{found}\nno checkpoint of {self.folder} is whole: put one back from a copy, or start a new run"
            )
        return RunState()

    def save(self, state: RunState) -> bool:
        """Writes a checkpoint, unless the latest holds this state already: between two renames there would be none.

        Returns whether it wrote one.
        """
        s = self.session
        if self.saved == (state.step, state.evaluated):
            _prune(self.folder, s.config.keep_checkpoints)  # a kill may have come before it
            return False
        save_checkpoint(self.folder, state, s.student, s.optimizer, s.scaler, s.config)
        self.saved = state.step, state.evaluated
        return True


def save_checkpoint(
    folder: Path, state: RunState, student: Student, optimizer: Optimizer, scaler: GradScaler, config: Config
) -> Path:
    """Writes `folder`/step_NNNNNN and removes all but the latest `keep_checkpoints`; returns the new folder."""
    from safetensors.torch import save_file

    path = folder / f"step_{state.step:06}"
    tensors, values = _flatten_optimizer(optimizer, list(student.trainable()))
    random_tensors, random_values = _random_state()
    with whole_folder(path) as beside:
        save_file({k: v.detach().contiguous() for k, v in student.trainable().items()}, beside / "trained.safetensors")
        save_file(tensors, beside / "optimizer.safetensors")
        save_file(random_tensors, beside / "random.safetensors")
        rest = {"optimizer": values, "random": random_values, "scaler": scaler.state_dict()}
        write_json(beside / "state.json", {"state": asdict(state), "config": config.model_dump(), **rest})
        write_manifest(beside, beside.iterdir())
    _prune(folder, config.keep_checkpoints)
    return path


def _prune(folder: Path, keep: int) -> None:
    """Removes all but the latest `keep` checkpoints, each renamed first: a kill leaves none that is half there."""
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old.rename(folder / f".{old.name}.gone"))


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{1,18}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def recover(folder: Path) -> None:
    """Clears up after a kill in the middle of a save; a checkpoint that was moved aside for its successor comes back."""
    for aside in folder.glob(".step_*.old"):
        place = folder / aside.name.removeprefix(".").removesuffix(".old")
        if place.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(place)
    for half in (*folder.glob(".step_*.tmp"), *folder.glob(".step_*.gone")):
        shutil.rmtree(half)


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that it is neither taken nor counted; returns its new place."""
    return path.rename(free_folder(path.parent, f"damaged_{path.name}"))


def _same_files(then: Any, now: Any) -> bool:
    """Whether two settings name files alike, one from where it was trained: what is in them, inputs.json compares."""
    if not (isinstance(then, str) and isinstance(now, str)):
        return False
    pairs = list(zip_longest(then.split(","), now.split(","), fillvalue=""))
    for pair in pairs:
        relative, whole = sorted((Path(word.strip()) for word in pair), key=Path.is_absolute)
        parts = [part for part in relative.parts if part != ".."]
        if relative != whole and not (whole.is_absolute() and parts and list(whole.parts[-len(parts) :]) == parts):
            return False
    return True


def load_checkpoint(path: Path, student: Student, optimizer: Optimizer, scaler: GradScaler, config: Config) -> RunState:
    """Restores weights, optimizer and random states from `path`; returns the run's state.

    Raises Damaged if it does not hold what was saved, and UserError if it is of a run with other settings than `config`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if fault := changed_since(path, ("state.json", *(f"{name}.safetensors" for name in PARTS))):
        raise Damaged(f"{path} is damaged: {fault}")
    try:
        saved = read_json(path / "state.json")
        trained, tensors, randoms = (load_file(path / f"{name}.safetensors") for name in PARTS)
        if odd := [
            key for key in ("state", "config", "optimizer", "random", "scaler") if not isinstance(saved[key], dict)
        ]:
            raise ValueError(f"{odd[0]} in state.json is a {type(saved[odd[0]]).__name__}")
        then = saved["config"]
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise Damaged(f"{path} is damaged: {error}") from None
    now, may_change = config.model_dump(), set(marked("resume", "sitting"))
    if not moved(str(then.get("teacher")), config.teacher):
        may_change.remove("teacher")
    fixed = (key for key in now if key not in may_change and now[key] != then.get(key, now[key]))
    if changed := sorted(key for key in fixed if not _same_files(then[key], now[key])):
        was = ", ".join(f"{key} {then[key]} (now {now[key]})" for key in changed)
        raise UserError(f"{path} was made with {was}; put config.yaml back, or start a new run")
    parameters = student.trainable()
    if {k: v.shape for k, v in trained.items()} != {k: v.shape for k, v in parameters.items()}:
        raise UserError(f"{path} holds other weights than this student trains; was its config.yaml edited?")
    if fault := _fault(parameters, trained, tensors):
        raise Damaged(f"{path} is damaged: {fault}")
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(trained[name])
        _restore_optimizer(optimizer, list(parameters), tensors, saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        state = _run_state(saved["state"], path)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} is damaged: {error}") from None
    try:
        _restore_random_state(randoms, saved["random"])
    except (
        RuntimeError,
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # of another number of cards
        raise UserError(f"the random states in {path} are not of such a machine: {error}") from None
    if (
        then.get("token_budget") != now["token_budget"]
    ):  # a new one was asked for: what ran out of memory was the old one
        state.token_budget = 0
    return state


def _run_state(saved: dict[str, Any], path: Path) -> RunState:
    """Returns where the run stands; raises ValueError for what no run of this version writes."""
    if newer := sorted(set(saved) - {field.name for field in fields(RunState)}):
        raise ValueError(f"it holds {', '.join(newer)}, which this version does not know")
    state = TypeAdapter(RunState).validate_json(json.dumps(saved), strict=True)
    if f"step_{state.step:06}" != path.name:
        raise ValueError(f"it is of step {state.step}")
    return state


def _fault(
    parameters: dict[str, Any], trained: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]
) -> str | None:
    """What weights (of the right shapes) and optimizer state can't be, were they saved from this student; None if nothing."""
    for name, parameter in parameters.items():
        if trained[name].dtype != parameter.dtype:
            return f"{name} is {trained[name].dtype}, and {parameter.dtype} is trained"
    for name, value in tensors.items():
        owner, _, key = name.rpartition("|")
        if owner not in parameters:
            return f"it has an optimizer state for {owner or name}, which is not trained"
        if key in OF_ITS_SHAPE and value.shape != parameters[owner].shape:
            return f"{key} of {owner} has the shape {list(value.shape)}"
    for name, value in [*trained.items(), *tensors.items()]:
        if value.is_floating_point() and not value.isfinite().all():
            return f"{name} is not finite"
    return None


def _flatten_optimizer(optimizer: Optimizer, names: list[str]) -> tuple[dict, dict[str, dict[str, Any]]]:
    """Returns the optimizer's state as tensors named `parameter|key` and, by parameter, what is not a tensor.

    The live state, not `state_dict()`, in which bitsandbytes wraps its own. Its quantisation maps are one tensor for all
    parameters, which safetensors refuses: each gets a copy.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}|{key}"] = value.detach().clone().contiguous()
            else:
                values.setdefault(name, {})[key] = value
    return tensors, values


def _restore_optimizer(optimizer: Optimizer, names: list[str], tensors: dict, values: dict[str, dict]) -> None:
    parameters = dict(zip(names, (p for group in optimizer.param_groups for p in group["params"]), strict=True))
    fused = optimizer.param_groups[0].get("fused")
    optimizer.state.clear()
    for name, value in tensors.items():
        owner, key = name.rsplit("|", 1)
        # AdamW counts its steps in a tensor, on the CPU unless all is one kernel, which would read the host's memory.
        device = "cpu" if key == "step" and not fused else parameters[owner].device
        optimizer.state[parameters[owner]][key] = value.to(device)
    for name, pairs in values.items():
        optimizer.state[parameters[name]].update(pairs)


def _random_state() -> tuple[dict, dict[str, Any]]:
    tensors = {"torch": torch.get_rng_state()}
    for i, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []):
        tensors[f"cuda{i}"] = state
    name, keys, *rest = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return tensors, {"python": random.getstate(), "numpy": [name, *rest]}


def _restore_random_state(tensors: dict, values: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([tensors[k] for k in sorted(k for k in tensors if k.startswith("cuda"))])
    name, *rest = values["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), *rest))
    version, state, gauss = values["python"]
    random.setstate((version, tuple(state), gauss))
