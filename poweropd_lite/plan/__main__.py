"""Says whether a run fits and how long it will take: `python -m poweropd_lite.plan --config qwen3-0.6b-4b --gpu 24`.

Memory by phase for prompts and completions as long as the config allows, operations of a step, and for a card that is named an
estimate of the time. If it does not fit, the smallest change that does; --write FILE makes a config of it.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED, Config, config_to_check
from poweropd_lite.base.config_files import checked
from poweropd_lite.base.errors import UserError, run_command
from poweropd_lite.base.flags import config_parser, given
from poweropd_lite.plan.settings import CannotPlan, PlanConfig

if TYPE_CHECKING:
    import torch

    from poweropd_lite.plan.memory import MemoryPlan
    from poweropd_lite.plan.report import Machine


def plan(
    config: Config, asked: PlanConfig | None = None, say: Callable[[str], None] = print
) -> tuple[dict[str, Any], Config | None]:
    """Returns the report of a run (docs/plan.md) and a config that fits: its own, a changed one, or None if nothing here helps.

    Raises UserError for models whose configs can't be read and for cards that are not known, and
    CannotPlan, which is one too, for models that can't be traced.
    """
    from poweropd_lite.engines.choose import hush_bitsandbytes

    hush_bitsandbytes()
    machine = _machine(config, asked or PlanConfig())

    from poweropd_lite.models.shape import read_config
    from poweropd_lite.plan.fit import differences, fit
    from poweropd_lite.plan.memory import GIB, plan_memory
    from poweropd_lite.plan.report import report
    from poweropd_lite.plan.trace import Traces

    if faults := cannot_run(config, machine):
        raise UserError("\n".join(faults))
    configs = read_config(config.student, "student", config), read_config(config.teacher, "teacher", config)
    dtype = _dtype(config, machine)
    traces = Traces(*configs, dtype)

    def memory(of: Config) -> "MemoryPlan":
        runtime = None if machine.cuda else _process_bytes()
        return plan_memory(of, traces, machine.cuda, *_engine(of, machine, asked), runtime)

    say(f"tracing {config.student} and {config.teacher} on tensors without memory")
    try:
        found = memory(config)
        changes: dict[str, tuple[Any, Any]] | None = {}
        fitting: Config | None = config
        if machine.gib is not None and found.needed > machine.gib * GIB:
            limit = round(machine.gib * GIB)
            fitting = fit(config, limit, memory, say, lambda of: not cannot_run(of, machine))
            changes = differences(config, fitting) if fitting else None
        engine = _engine(config, machine, asked)[0]
        return report(config, found, machine, dtype, engine, asked or PlanConfig(), changes), fitting
    except UserError:
        raise
    except Exception as error:  # a model's own code on tensors without memory
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CannotPlan(
            f"{config.student} <- {config.teacher} can't be planned ({reason}); train runs without a plan, and says so"
        ) from error


def cannot_run(config: Config, machine: "Machine") -> list[str]:
    """Returns why a run of `config` would be refused on a machine, in sentences; machine.check_machine for another machine."""
    faults = []
    if not machine.cuda:
        if config.optimizer == "adamw8bit":
            faults.append("optimizer adamw8bit needs a CUDA card; type --optimizer adamw")
        if config.teacher_bits == 8:
            faults.append("teacher_bits 8 (LLM.int8) needs a CUDA card; type --teacher-bits 4, 16 or 32")
        if config.dtype == "float16":
            faults.append("float16 needs a CUDA card; type --dtype float32 or bfloat16")
    if machine.card is not None and not machine.card.bfloat16:
        if config.dtype == "bfloat16":
            faults.append(f"{machine.name} has no bfloat16; type --dtype float16 (with a loss scale) or float32")
        if config.full_finetune and config.dtype == "auto":
            faults.append(
                f"{machine.name} has no bfloat16, and full_finetune in float16 loses small updates; type --dtype float32"
            )
    return faults


def _machine(config: Config, asked: PlanConfig) -> "Machine":
    from poweropd_lite.plan.cards import card_here, find_card
    from poweropd_lite.plan.report import Machine

    if asked.gpu is not None and asked.gpu.lower() != "cpu":
        name, card, gib = find_card(asked.gpu)
        return Machine(name, True, card, gib)
    if asked.gpu is None and (here := card_here()):
        return Machine(here[0], True, here[1], here[2])
    if asked.gpu is None and config.student != BUNDLED:
        return Machine("any card", True, None, None)
    from poweropd_lite.base.memory import machine_bytes

    return Machine("this machine's CPU", False, None, machine_bytes() / 2**30)


def _engine(config: Config, machine: "Machine", asked: PlanConfig | None) -> tuple[str, bool]:
    """The engine that is planned for, and whether it shares Unsloth's weights. What auto takes on a card that is named is not
    known: the loop.
    """
    import torch

    from poweropd_lite.engines.choose import installed

    here = machine.cuda and torch.cuda.is_available() and (asked is None or asked.gpu is None)
    if config.engine == "loop" or (config.engine == "auto" and not (here and installed("vllm"))):
        return "loop", False
    if config.full_finetune or config.modules_to_save:
        return "loop", False
    return "vllm", machine.cuda and (
        config.loader == "unsloth" or (config.loader == "auto" and bool(installed("unsloth")))
    )


def _dtype(config: Config, machine: "Machine") -> "torch.dtype":
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    if not machine.cuda:
        return torch.float32
    return torch.bfloat16 if machine.card is None or machine.card.bfloat16 else torch.float16


def _process_bytes() -> int:
    from poweropd_lite.base.memory import peak_gib

    return round(peak_gib() * 2**30)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 it fits (or a config that does was written), 1 it does not, 2 bad input."""
    parser = config_parser(
        "python -m poweropd_lite.plan",
        f"{__doc__.splitlines()[0]}\n\nAny setting of training may follow; without a config that names models it is the bundled pair's.",
        PlanConfig,
        Config,
    )
    parser.add_argument("--write", metavar="FILE", help="write a config that fits there")
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")
    args = parser.parse(argv)
    asked = checked(PlanConfig, given(args, PlanConfig))
    config = config_to_check(args.config, given(args))
    out = Path(args.write) if args.write else None
    if out is not None:
        _check_new(out)
    with contextlib.redirect_stdout(sys.stderr):
        found, fitting = plan(config, asked, say=lambda text: print(text, flush=True))
    if args.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        _show(found, config)
    if out is not None and fitting is not None:
        _write(out, found, fitting)
        if not args.json:
            print(f"wrote   {out}: python -m poweropd_lite.train --config {out}")
        return 0
    return 1 if found["fits"] is False else 0


def _show(found: dict[str, Any], config: Config) -> None:
    from poweropd_lite.plan.fit import describe
    from poweropd_lite.plan.report import words

    print(words(found, config.steps))
    if found["changes"]:
        changes = {name: tuple(pair) for name, pair in found["changes"].items()}
        print(f"change  {describe(changes)}   (--write FILE makes a config of it)")
    elif found["changes"] is None:
        print("change  no setting here makes it fit; take a smaller student or teacher, or a larger card")


def _write(path: Path, found: dict[str, Any], fitting: Config) -> None:
    from poweropd_lite.base.files import write_text
    from poweropd_lite.plan.fit import config_text

    kind = "LoRA" if not fitting.full_finetune else "every weight trained"
    room = f"fits {found['machine']}" if found["usable_bytes"] else f"needs {found['needed_bytes'] / 2**30:.1f} GiB"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(
            path, config_text(fitting, f"{fitting.student} <- {fitting.teacher}, {kind}: {room} by plan's arithmetic.")
        )
    except OSError as error:
        raise UserError(
            f"can't write {path}: {error.strerror}; type --write with a name in a folder of yours"
        ) from None


def _check_new(path: Path) -> None:
    """Raises UserError for a file that could not be written, before anything is planned."""
    import os

    if os.path.lexists(path):
        raise UserError(f"{path} is there already, and a plan never writes over a file; type --write with a new name")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"can't write into {there}; type --write with a name in a folder of yours")


if __name__ == "__main__":
    run_command(main)
