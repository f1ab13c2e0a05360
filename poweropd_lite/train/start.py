"""A run from its first line to its last: opened or made, prepared, loaded, trained (loop.py), handed over, summed up."""

import shlex
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import explained_faults
from poweropd_lite.base.ranks import joined, settle
from poweropd_lite.base.stop import LOADING, StopRequest, end_cell, stopped_at_once
from poweropd_lite.models.served import ServedTeacher
from poweropd_lite.plan.auto import settle_run
from poweropd_lite.plan.memory import planned_gib
from poweropd_lite.plan.parallel import of_one_card
from poweropd_lite.run.checkpoint import Checkpoints
from poweropd_lite.run.folder import check_output, new_run, open_run
from poweropd_lite.run.handover import hand_over
from poweropd_lite.run.inputs import Inputs
from poweropd_lite.run.recorder import Recorder, Results
from poweropd_lite.run.session import load_session, prepare
from poweropd_lite.train.loop import run_loop


def train(
    config: Config | None = None, *, resume: str | Path | None = None, accept_changes: bool = False, **changes: Any
) -> Results:
    """Runs a new training run of `config`, or goes on with the one in the folder `resume`.

    `changes` are settings of a resumed run: those that base.config.marked("resume") lists. `accept_changes` goes on with
    data or models that are not those of before, which else are refused, and keeps it in inputs.json. Fills the run
    folder (docs/run_folder.md) and returns what came out. Raises UserError for what the user can mend and, in Jupyter,
    Stopped when the stop button ended it and it is saved.
    """
    if (config is None) == (resume is None):
        raise UserError("train wants one of a config and a run folder to resume: train(load_config('bundled'))")
    if config is not None:
        if changes or accept_changes:
            raise UserError(
                f"{', '.join(changes) or 'accept_changes'} change a run that is resumed; a new one takes them in its config"
            )
        check_output(config)
        if "alpha" in config.model_fields_set & config.ignored:
            print(f"note: alpha {config.alpha:g} is ignored: reward {config.reward} has no exponent")
        defaults = {
            name: field.default for name, field in Config.model_fields.items()
        }  # as a run's config.yaml has many
        for name in sorted(n for n in config.ignored - {"alpha"} if getattr(config, n) != defaults[n]):
            print(f"note: {name} {getattr(config, name)} is ignored: {config.reward_label} does not read it")
    with StopRequest() as stop, ExitStack() as held:
        run = None
        with stopped_at_once(LOADING), explained_faults("no step was taken"):
            ranks = held.enter_context(joined(print))
            if config is None and not ranks.rank:
                run, config = open_run(str(resume), **changes)
                held.enter_context(run)
            config = ranks.of_first(config)
            assert config is not None
            config = settle(config, ranks.count)
            ready = prepare(config, print)
            on = ready.device, ready.dtype, ready.engine.name, ready.shared, print
            share = of_one_card(ready.config, ranks.count)
            found = ranks.of_first(settle_run(share, *on))
            planned = planned_gib(found, *on)
            ready = replace(ready, config=changed(found, batch_size=ready.config.batch_size))
            session = held.enter_context(closing(load_session(ready, print, ranks)))
        if run is None:
            if ranks.rank:  # its books are thrown away
                config = changed(config, output=held.enter_context(TemporaryDirectory(prefix="poweropd_lite-")))
            run = held.enter_context(new_run(config))
        again = f"what was saved before stands: python -m poweropd_lite.train --resume {shlex.quote(str(run.path))} goes on from it"
        held.enter_context(explained_faults(again))
        served = session.teacher if isinstance(session.teacher, ServedTeacher) else None
        inputs = Inputs(run, ready, served.said if served else ())  # of the hub's models once they are here
        if run.steps_saved and not accept_changes:
            inputs.refuse()
        saved = Checkpoints(ranks.of_first(run.checkpoints), session)
        with ranks.first_before_others():  # which sets aside what is damaged
            state = saved.resume(print)
        if ranks.of_first(state.step) != state.step:
            raise UserError(f"the first process goes on at another step than this one, which read step {state.step}")
        inputs.keep(state.step)
        if saved.saved:
            print(f"resuming {run.path} at step {state.step} of {config.steps}")
            if state.step >= config.steps:
                print(f"it has taken all its steps: --steps {2 * config.steps} goes on")
            if state.processes != ranks.count:
                was = f"processes: {ranks.count}, where it had {state.processes} so far"
                print(f"{was}: the data and the draws stay the same, sums are rounded otherwise")
        state.processes = ranks.count
        with Recorder(run, session, state, planned) as record:
            if served is not None:
                served.say, served.stopped = record.progress.say, lambda: bool(stop)
            run_loop(session, state, record, saved, stop)
            started = time.monotonic()
            weights = "" if ranks.rank else hand_over(run, session)
            state.spend("save", time.monotonic() - started)
            results = record.finish(stop, weights)
            ranks.any(False)  # all leave together: what started them ends those that stay
    if not results.finished:
        end_cell(stop.signal)
    return results
