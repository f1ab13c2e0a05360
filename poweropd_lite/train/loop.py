"""Trains a student by on-policy distillation: `python -m poweropd_lite.train --alpha 10`.

The loop is in `train`, in the paper's order: the student samples, the teacher scores, the student learns. From Python:
`train(load_config("bundled", alpha=10))`. Left out, on purpose: more than one card.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.stop import StopRequest, end_cell
from poweropd_lite.run.folder import check_output, new_run, open_run

if TYPE_CHECKING:
    from torch import Tensor

    from poweropd_lite.engines.guard import Guard
    from poweropd_lite.method.rollout import Rollout
    from poweropd_lite.run.checkpoint import RunState
    from poweropd_lite.run.recorder import Results
    from poweropd_lite.run.session import Session


def train(config: Config | None = None, *, resume: str | Path | None = None, **changes: Any) -> "Results":
    """Runs a new training run of `config`, or goes on with the one in the folder `resume`.

    What may change at a resume is given by name: steps, engine, loader, token_budget (base.config.marked("resume")).
    Fills the run folder (docs/run_folder.md) and returns what came out. Raises UserError for what the user can mend and, in
    Jupyter, Stopped when the stop button ended it and it is saved.
    """
    if (config is None) == (resume is None):
        raise UserError("train wants one of a config and a run folder to resume: train(load_config('bundled'))")
    if resume is None and changes:
        raise UserError(f"{', '.join(changes)} change a run that is resumed; a new one takes them in its config")
    if resume is None:
        check_output(config)
        if config.reward != "power" and "alpha" in config.model_fields_set:
            print(f"note: alpha {config.alpha:g} is ignored: reward {config.reward} has no exponent")
    with StopRequest() as stop, ExitStack() as held:
        from poweropd_lite.engines.guard import RolloutMismatch
        from poweropd_lite.run.recorder import Recorder
        from poweropd_lite.run.session import load_session

        if resume is not None:
            run, config = open_run(resume, **changes)
            held.enter_context(run)
        session = held.enter_context(closing(load_session(config, say=print)))
        if resume is None:
            run = held.enter_context(new_run(config))
        with Recorder(run, session) as record:
            state = record.state
            guard = make_guard(session, state.first_gap)
            record.evaluate_if_due(stop)
            while state.step < config.steps and not stop:
                started = time.monotonic()
                session.set_learning_rate(state.step)
                rollouts = sample_rollouts(session, state.step)
                rollout_seconds = time.monotonic() - started
                try:
                    metrics, rewards = learn(session, state, guard, rollouts, record.say)
                except RolloutMismatch:
                    record.save()
                    raise
                metrics |= {"time/rollout": rollout_seconds, "time/step": time.monotonic() - started}
                record.step(rollouts, metrics, rewards)
                record.evaluate_if_due(stop)
                record.save_if_due()
            results = record.finish(stop)
    if not results.finished:
        end_cell(stop.signal)
    return results


def sample_rollouts(session: "Session", step: int) -> "list[Rollout]":
    """Returns the rollouts of step `step` (from 0): one for each of its prompts."""
    from poweropd_lite.method.rollout import TRAINING, Draws
    from poweropd_lite.problems.prompts import step_indices

    config, engine = session.config, session.engine
    indices = step_indices(len(session.prompts), config.batch_size, config.seed, step)
    draws = Draws(config.seed, TRAINING, step, tuple(range(config.batch_size)))
    prompts = [session.prompts[i].ids for i in indices]
    engine.sync()
    rollouts = engine.sample(prompts, draws, session.sampling, config.max_new_tokens)
    engine.release()
    return rollouts


def make_guard(session: "Session", first_gap: float | None) -> "Guard":
    """Returns what compares the engine with the trainer at every step."""
    from poweropd_lite.engines.guard import Guard

    return Guard(session.engine, session.student, session.sampling, session.config, first_gap)


def learn(
    session: "Session", state: "RunState", guard: "Guard", rollouts: "list[Rollout]", say: Callable[[str], None]
) -> "tuple[dict[str, float], Tensor]":
    """Takes one optimizer step on the rollouts; returns its metrics and what each of its N tokens was paid [N].

    Out of memory, it halves the micro-batches.
    """
    from poweropd_lite.base.memory import explained_out_of_memory, halving
    from poweropd_lite.method.update import accumulate, take_step

    s = session
    gradient, budget, halved = halving(
        lambda b: accumulate(s.student, s.teacher, s.scaler, rollouts, s.sampling, s.pair.teacher_stop, s.config, b),
        state.token_budget or s.config.token_budget,
        max(map(len, rollouts)),
        s.student.device,
        say,
    )
    if halved:
        state.token_budget, state.out_of_memory = budget, state.out_of_memory + halved
    started = time.monotonic()
    with explained_out_of_memory("the parity guard"):
        parity = guard.check(state.step, rollouts, gradient.tokens.log_q, gradient.tokens.engine, budget)
    parity["time/guard"] = time.monotonic() - started
    state.first_gap = guard.first_gap
    with explained_out_of_memory("the optimizer step"):
        metrics = take_step(s.student, s.optimizer, s.scaler, gradient, s.config)
    metrics |= parity | {"optim/token_budget": budget, "optim/out_of_memory": state.out_of_memory}
    return metrics, gradient.tokens.reward
