"""The loop of training, in the paper's order: the student samples, the teacher scores, the student learns.

What is opened and loaded before it: start.py. Where several processes train together, all of them are in it (base/ranks.py).
"""

import time

from poweropd_lite.base.memory import explained_out_of_memory, halving
from poweropd_lite.base.ranks import FailedElsewhere
from poweropd_lite.base.stop import StopRequest
from poweropd_lite.engines.guard import Guard, RolloutMismatch
from poweropd_lite.evaluate.sampling import evaluate_student
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import Gradient, accumulate, take_step
from poweropd_lite.models.served import TeacherFault, WaitStopped
from poweropd_lite.run.checkpoint import Checkpoints, RunState
from poweropd_lite.run.metrics import describe, on_host, set_compiling_apart
from poweropd_lite.run.recorder import Recorder
from poweropd_lite.run.session import Session


def run_loop(session: Session, state: RunState, record: Recorder, saved: Checkpoints, stop: StopRequest) -> None:
    """Trains from where `state` stands to the last step, or until a stop is asked for; what it ends with is saved.

    Where too many steps are dropped it gives up, and what was saved before stays.
    """
    config, ready, guard = session.config, session.ready, session.guard(state.first_gap)
    unsaved = False  # whether a checkpoint is due: none is written while steps are being dropped
    try:
        evaluate_if_due(session, state, record, stop)
        while state.step < config.steps and not session.ranks.any(bool(stop) or record.progress.unread):
            started = time.monotonic()
            session.set_learning_rate(state.step)
            session.engine.sync()
            rollouts = ready.sample(session.engine, state.step, config.batch_size, session.ranks)
            session.engine.release()
            rollout_seconds = time.monotonic() - started
            gradient, metrics = learn(session, state, guard, rollouts, record)
            metrics |= {
                "time/rollout": rollout_seconds,
                "time/step": time.monotonic() - started - metrics.get("time/compile", 0.0),
            }
            record.step(rollouts, metrics, gradient.tokens.reward)
            if record.gave_up:
                break
            evaluate_if_due(session, state, record, stop)
            unsaved = unsaved or state.step % config.save_every == 0
            if unsaved and not state.skipped_in_a_row:
                save(saved, state, record)
                unsaved = False
    except (RolloutMismatch, TeacherFault, FailedElsewhere, BrokenPipeError):  # the step in hand is not taken
        save(saved, state, record)
        session.ranks.any(False)  # what started them ends those that stay
        raise
    except WaitStopped:  # nor here
        pass
    record.progress.close()
    if not record.gave_up:  # else the checkpoints before stay the latest
        save(saved, state, record)


def learn(
    session: Session, state: RunState, guard: Guard, rollouts: list[Rollout], record: Recorder
) -> tuple[Gradient, dict[str, float]]:
    """Takes one optimizer step on the rollouts; returns its gradient and metrics. Out of memory, it halves micro-batches."""
    s, objective, compiled = session, session.ready.objective, [session.compile_seconds]
    own, theirs, longest = s.config.tokens_at_once, s.config.teacher_tokens_at_once, max(map(len, rollouts))

    def attempt(most: int) -> Gradient:  # of own and theirs the larger is halved first
        compiled.append(s.compile_seconds)
        given = rollouts, objective, min(own, most), s.scaler, min(theirs, most), s.reference, s.draws(state.step)
        with s.ranks.failing_together():
            return accumulate(s.student, s.teacher, *given, s.ranks)

    at_first = state.token_budget or max(own, min(theirs, longest * len(rollouts)))
    gradient, most, halved = halving(attempt, at_first, longest, s.student.device, record.progress.say)
    set_compiling_apart(gradient.metrics, compiled[0], compiled[-1], s.compile_seconds)
    if halved:
        state.token_budget, state.out_of_memory = most, state.out_of_memory + halved
    budget = min(own, most)
    gradient.tokens = tokens = on_host(gradient.tokens)
    started = time.monotonic()
    with explained_out_of_memory("the parity guard"):
        parity = guard.check(state.step, rollouts, tokens.log_q, tokens.engine, budget)
    parity["time/guard"], state.first_gap = time.monotonic() - started, guard.first_gap
    with explained_out_of_memory("the optimizer step"):
        limit = s.config.max_grad_norm
        metrics = s.bounds.guard(lambda: take_step(s.student, s.optimizer, gradient, limit, s.scaler))
    metrics |= describe(tokens, objective, rollouts) if gradient.count else {}
    return gradient, metrics | parity | {"optim/token_budget": budget, "optim/out_of_memory": state.out_of_memory}


def evaluate_if_due(session: Session, state: RunState, record: Recorder, stop: StopRequest) -> None:
    """Evaluates before the first step, after the last, and every `eval_every`; a stop request cuts it short. The first of several alone."""
    config, ready = session.config, session.ready
    due = state.step in (0, config.steps) or (config.eval_every and state.step % config.eval_every == 0)
    if not due or not (ready.held_out or ready.unseen) or state.evaluated == state.step or stop or session.ranks.rank:
        return

    def tick(done: int, total: int) -> bool:
        record.progress.evaluating(done, total)
        return not stop

    started = time.monotonic()
    session.engine.sync()
    models = session.engine, ready.held_out, ready.pair, config, session.student.device
    done = evaluate_student(*models, tick, session.teacher, ready.unseen, state.token_budget)
    session.engine.release()
    if done is not None:
        result, sample = done
        record.evaluated(result.metrics(), result.record(), sample, time.monotonic() - started)


def save(saved: Checkpoints, state: RunState, record: Recorder) -> None:
    """Writes a checkpoint of where the run stands, if the latest is of another state."""
    started = time.monotonic()
    record.sync()
    if not saved.session.ranks.rank and saved.save(state):
        state.spend("save", time.monotonic() - started)
