"""The plan of a run: what it holds on a machine, and where that is too much the smallest change that fits."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError, refuse
from poweropd_lite.base.memory import peak_gib
from poweropd_lite.base.ranks import settle
from poweropd_lite.checks.machine import check_device, dtype_name
from poweropd_lite.checks.modules import experts_left
from poweropd_lite.engines.choose import installed, part_fault
from poweropd_lite.models.saved import saved_settings, settle_adapter
from poweropd_lite.models.shape import is_the_papers
from poweropd_lite.models.streamed import not_streamable
from poweropd_lite.plan.auto import settled
from poweropd_lite.plan.cards import find_machine
from poweropd_lite.plan.fit import differences, fit
from poweropd_lite.plan.memory import GIB, LOADED_LATER, MemoryPlan, plan_memory
from poweropd_lite.plan.parallel import check_cards, of_one_card
from poweropd_lite.plan.report import report
from poweropd_lite.plan.settings import CannotPlan, PlanConfig
from poweropd_lite.plan.trace import traces_of


def plan(
    config: Config, asked: PlanConfig | None = None, say: Callable[[str], None] = print
) -> tuple[dict[str, Any], Config | None]:
    """Returns the report of a run (docs/plan.md) and a config that fits: its own, a changed one, or None if none does.

    Of several cards (`asked.gpus`) the report is that of each; the config has the whole step's batch.
    Raises UserError for models whose configs can't be read, cards that are not known, and what train refuses there.
    """
    asked, config = asked or PlanConfig(), settle_adapter(config, say)
    machine = find_machine(asked.gpu, wants_card=is_the_papers(config.student))
    if asked.gpu is None and not machine.cuda and not config.student.startswith(BUNDLED):
        say("no CUDA here, so this machine's CPU is planned for; --gpu 24, or a card's name, plans a card")
    refuse(check_device(config, machine.cuda, machine.bfloat16, machine.name))
    check_cards(config, asked.gpus, machine)
    whole = settle(config, asked.gpus)
    config = of_one_card(whole, asked.gpus)
    dtype = dtype_name(config.dtype, machine.cuda, machine.bfloat16, machine.name)
    traces = traces_of(config, getattr(torch, dtype))
    here = machine.cuda and torch.cuda.is_available() and asked.gpu is None

    def memory(of: Config) -> MemoryPlan:
        runtime = None if machine.cuda else round(peak_gib() * GIB) + LOADED_LATER
        if here and of.loader == "auto" and installed("unsloth"):  # whose layers are not compiled by us
            of = changed(of, loader="unsloth")
        return plan_memory(of, traces, machine.cuda, *_engine(of, machine.cuda, here), runtime, machine.bfloat16)

    models = copy.deepcopy((traces.student_config, traces.teacher_config))  # building one writes into its config

    def runs(of: Config) -> bool:
        found = [*check_device(of, machine.cuda, machine.bfloat16, machine.name), *experts_left(of, *models)]
        return all(finding.level != "refusal" for finding in found)

    say(f"tracing {config.pair} on tensors without memory")
    try:
        refuse(experts_left(config, *models))
        config = settled(config, memory, machine.gib if machine.cuda else None)
        found = memory(config)
        if config.teacher_offload and found.teacher.layer is None:
            raise UserError(not_streamable(config.teacher))
        fitting: Config | None = config
        if machine.gib is not None and found.needed > machine.gib * GIB:
            fitting = fit(config, round(machine.gib * GIB), memory, say, runs)
        changes = differences(config, fitting) if fitting else None
        if changes is not None:  # what is auto stays so, if it need not be changed
            fitting = changed(whole, **{name: after for name, (_, after) in changes.items()}) if changes else whole
        engine, _ = _engine(config, machine.cuda, here)
        out = report(config, found, machine, dtype, engine, asked, changes, whole.batch_size)
        if changes and fitting:
            one = of_one_card(fitting, asked.gpus)
            then = report(one, memory(one), machine, dtype, engine, asked, {}, whole.batch_size)
            took = then["seconds"] or {"step": {}, "run": 0.0}
            out["then"] = {"needed_bytes": then["needed_bytes"], "step": took["step"], "run": took["run"]}
            out["warnings"] = then["warnings"]  # of the run as it would be made
        return out, fitting
    except UserError:
        raise
    except Exception as error:  # a model's own code on tensors without memory
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        fault = f"{config.pair} can't be planned ({reason})"
        raise CannotPlan(f"{fault}; train runs without a plan, and says so") from error


def _engine(config: Config, cuda: bool, here: bool) -> tuple[str, bool]:
    """The engine that is planned for, and whether it shares Unsloth's weights.

    What auto takes on a card that is not `here` is not known: the loop.
    """
    vllm = config.engine == "vllm" or (config.engine == "auto" and here and bool(installed("vllm")))
    dora = config.adapter is not None and bool(saved_settings(Path(config.adapter)).get("use_dora"))
    if not vllm or config.full_finetune or config.modules_to_save or dora:
        return "loop", False
    if part_fault(config.student, config.trust_remote_code):
        return "loop", False
    unsloth = config.loader == "unsloth" or (config.loader == "auto" and bool(installed("unsloth")))
    return "vllm", cuda and unsloth
