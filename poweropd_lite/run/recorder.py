"""The run's notebook: what each step and evaluation gave, on screen and in the run folder, and the closing summary."""

import math
import shlex
import signal
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.base.config_files import dump_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import write_json, write_text
from poweropd_lite.base.intervals import is_noise
from poweropd_lite.base.memory import peak_gib
from poweropd_lite.base.progress import clock, in_notebook
from poweropd_lite.base.stop import StopRequest
from poweropd_lite.base.tables import score_names
from poweropd_lite.base.teachers import called
from poweropd_lite.method.batch import loss_lengths
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.run.bounds import FARTHEST, LARGEST
from poweropd_lite.run.checkpoint import RunState
from poweropd_lite.run.folder import RunFolder
from poweropd_lite.run.live import show_progress
from poweropd_lite.run.metrics import JsonLines, Tracker, due, number_in, pieces, rounded, token_stats
from poweropd_lite.run.session import Session

MOST_DROPPED_IN_A_ROW, LATELY = 10, 50  # steps
NOTHING_PAID, ENDS = 1e-3, ("reward/min", "reward/max")  # a reward's size
NEAR = {"kl": "kl/train", "kl_error": "kl/train_error", "teacher_logprob": "logprob/teacher"}  # in a record; as metrics


def too_many_dropped(state: RunState, steps: int) -> str | None:
    """Returns why a run of `steps` steps should go no further: ten dropped in a row, or too many of the last fifty.

    Too many are more than a fifth of these, or of a shorter run's steps, and at least five.
    """
    if state.skipped_in_a_row >= MOST_DROPPED_IN_A_ROW:
        return f"{state.skipped_in_a_row} steps in a row were dropped"
    lately = min(LATELY, steps)
    count = sum(step > state.step - lately for step in state.skipped_lately)
    if count >= max(5, lately // 5 + 1):
        return f"{count} of the last {min(lately, state.step)} steps were dropped"
    return "every step was dropped" if state.step == steps == state.skipped else None


def seconds_left(config: Config, state: RunState, pace: Sequence[float]) -> float:
    """Returns what a run that just took a step has to come: steps as long as those of `pace`, and evaluations as those so far."""
    steps = statistics.fmean(pace) * (config.steps - state.step)
    if not state.evaluations:
        return steps
    every = config.eval_every or config.steps
    due = (config.steps - 1) // every - (state.step - 1) // every + 1  # this step's own too
    return steps + due * state.seconds["evaluate"] / len(state.evaluations)


def near(record: dict[str, Any], whole: bool = True) -> str:
    """Returns a record's estimate of the KL to the teacher, to be read."""
    kl, error, logprob = (math.nan if (value := record[name]) is None else value for name in NEAR)
    text = f"{kl:.3f} ± {error:.3f}"
    return f"KL to the teacher {text} nats a token, its log p {logprob:.3f}" if whole else f"KL {text}"


def ends(record: dict[str, Any]) -> str:
    """Returns how long a record's completions are and how many stop, to be read."""
    return f"{record['length']:.0f} tokens, {record['stop_share']:.1%} stop"


@dataclass(frozen=True)
class Results:
    """What `train` returns."""

    run: Path  # the run folder
    summary: dict[str, Any]  # as in summary.json
    finished: bool  # False if a signal stopped it, and `--resume` goes on, or if it gave up
    signal: int  # which one, or 0


class Recorder:
    """Records one sitting of a run, from `state` on; `state` moves with the run."""

    def __init__(self, run: RunFolder, session: Session, state: RunState, planned_gib: float | None) -> None:
        self.run, self.session, self.config, self.state = run, session, session.config, state
        self.planned_gib = planned_gib  # the planned peak of memory (plan/)
        self.pace: deque[float] = deque(maxlen=LATELY)  # seconds of the last steps of this sitting
        self.gave_up: str | None = None  # why, once too many steps were dropped
        self.files = {name: JsonLines(run.path / f"{name}.jsonl") for name in ("metrics", "samples", "tokens")}
        for file in self.files.values():
            if said := file.rewind(state.step if state.step or state.evaluated >= 0 else -1):
                print(said)
        write_text(run.path / "config.yaml", dump_yaml(session.config))
        self.tracker = Tracker(self.config, run.path)
        self.progress = show_progress(self.config, state.step, self.files["metrics"].path)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.tracker.close()

    def step(self, rollouts: Sequence[Rollout], metrics: dict[str, float], rewards: Tensor) -> None:
        """Records a step that was just taken, with what its N tokens were paid [N]; sets `gave_up` if it was one dropped too many."""
        state = self.state
        state.step += 1
        dropped = bool(metrics["optim/skipped"])
        state.skipped += dropped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if dropped else 0
        state.skipped_lately = [step for step in state.skipped_lately if step > state.step - LATELY]
        state.skipped_lately += [state.step] if dropped else []
        lengths = [len(r.completion_ids) for r in rollouts]
        state.tokens += sum(lengths)
        stops = sum(r.finish == "stop" for r in rollouts) / len(rollouts)
        for phase in ("rollout", "teacher", "student", "guard", "optimizer"):
            state.spend(phase, metrics.get(f"time/{phase}", 0.0))
        if "time/compile" in metrics:
            state.spend("compile", metrics["time/compile"])
        state.peak_gib = max(state.peak_gib, peak_gib())
        metrics |= {
            "rollout/length": sum(lengths) / len(lengths),
            "rollout/stop_share": stops,
            "rollout/truncated_share": 1.0 - stops,
            "rollout/logprob": sum(sum(r.logprobs) for r in rollouts) / sum(lengths),
            "tokens/total": state.tokens,
            "optim/lr": self.session.optimizer.param_groups[0]["lr"],
            "optim/skipped_total": state.skipped,
            **({"optim/loss_scale": scaler.get_scale()} if (scaler := self.session.scaler).is_enabled() else {}),
            "time/tokens_per_second": sum(lengths) / metrics["time/step"],
            "memory/peak_gib": state.peak_gib,
            **({"memory/planned_gib": self.planned_gib} if self.planned_gib else {}),
        }
        self.files["metrics"].write(state.step, metrics)
        self.tracker.log(state.step, metrics)
        self.pace.append(metrics["time/step"])
        self.progress.step(state.step, metrics, seconds_left(self.config, state, self.pace))
        if state.step == 1 or state.step % self.config.sample_every == 0:
            self._write_sample("train", rollouts[0], rewards)
        self._write_tokens(rollouts, rewards)
        largest = max(abs(metrics.get(end, math.inf)) for end in ENDS)
        if state.step == 1 and largest < NOTHING_PAID and not dropped:
            little = f"no token of step 1 was paid more than {largest:.1g} in size"
            self.progress.say(little + self._advise())
        if dropped:
            self.progress.say(f"step {state.step} dropped: {self._why_dropped(metrics)}")
        if many := too_many_dropped(state, self.config.steps):
            self.gave_up = (
                f"{many}, the last because {self._why_dropped(metrics)}; the weights are as before them. Start a new run with a "
                f"lower --lr (now {self.config.learning_rate:g}), or look at {self.files['metrics'].path}"
            )

    def evaluated(self, metrics: dict[str, float], record: dict[str, Any], sample: Rollout, seconds: float) -> None:
        """Records an evaluation of the weights as they are: its metrics, its record in the summary, an answer."""
        state, config = self.state, self.config
        state.spend("evaluate", seconds)
        metrics = metrics | {"time/evaluate": seconds}
        self.files["metrics"].write(state.step, metrics)
        self.tracker.log(state.step, metrics)
        self._write_sample("eval", sample)
        state.evaluated, state.evaluations[str(state.step)] = state.step, record
        self.progress.evaluated(state.step, metrics)
        form = ".3f" if config.eval_grader else ".1%"
        more = "".join(f"; {name} {one['avg']:{form}}" for name, one in record.get("benchmarks", {}).items())
        more += f"; answers that could not be graded: {record['undecided']}" if record.get("undecided") else ""
        more += f", the first: {record['fault']}" if "fault" in record else ""
        parts = []
        if "avg" in record:
            name, _ = score_names(config.eval_samples, bool(config.eval_grader))
            parts += [f"{name} {record['avg']:{form}}", f"greedy {record['greedy']:{form}}", ends(record)]
        if "kl" in record:
            parts.append(near(record, whole="avg" not in record))
            parts += [ends(record)] if "avg" not in record else []
        self.progress.say(f"evaluation at step {state.step}: {', '.join(parts)} ({clock(seconds)}){more}")

    def sync(self) -> None:
        """Brings every line to the disk, before a checkpoint says that they are there."""
        for file in self.files.values():
            file.sync()

    def finish(self, stop: StopRequest, weights: str) -> Results:
        """Writes summary.json, prints the summary and returns what came out; `weights` is the folder handed over."""
        finished = self.state.step >= self.config.steps and not stop and not self.gave_up
        summary = self._summary(finished, weights)
        write_json(self.run.path / "summary.json", summary)
        self._print_summary(summary)
        return Results(self.run.path, summary, finished, stop.signal or signal.SIGPIPE * self.progress.unread)

    def _write_sample(self, kind: str, rollout: Rollout, rewards: Tensor | None = None) -> None:
        def decode(ids: Sequence[int]) -> str:
            return str(self.session.ready.pair.tokenizer.decode(list(ids)))

        sample: dict[str, Any] = {"prompt": decode(rollout.prompt_ids), "completion": decode(rollout.completion_ids)}
        if rollout.teacher_prompt_ids:
            sample["teacher_prompt"] = decode(rollout.teacher_prompt_ids)
        if rewards is not None:
            length = loss_lengths([rollout], self.session.ready.objective.stops)[0]
            sample["tokens"] = pieces(decode, rollout.completion_ids)
            sample["rewards"] = [rounded(reward) for reward in rewards[:length].tolist()]
        self.files["samples"].write(self.state.step, {"kind": kind, "finish": rollout.finish, **sample})

    def _write_tokens(self, rollouts: Sequence[Rollout], rewards: Tensor) -> None:
        config, objective = self.config, self.session.ready.objective
        if due(self.state.step, config.steps):
            bounds = objective.entry.limits(objective.settings)
            lengths = loss_lengths(rollouts, objective.stops)
            stats = token_stats(rewards, lengths, bounds, config.max_new_tokens)
            self.files["tokens"].write(self.state.step, stats)

    def _summary(self, finished: bool, weights: str) -> dict[str, Any]:
        state, config, planned = self.state, self.config, self.planned_gib
        before, after = state.evaluations.get("0"), state.evaluations.get(str(state.step))
        steps = [line for line in self.files["metrics"].lines() if "kl/train" in line]
        rollouts = [
            {"step": at["step"], **{n: number_in(at[m]) for n, m in NEAR.items()}} for at in steps[:1] + steps[-1:]
        ]
        return {
            "finished": finished,
            "steps": state.step,
            "reward": config.reward,
            "alpha": None if "alpha" in config.ignored else config.alpha,
            "score": config.score,
            "seed": config.seed,
            "accuracy_before": before and before.get("avg"),
            "accuracy_after": after and after.get("avg"),
            **({"grader": config.eval_grader} if config.eval_grader else {}),
            "evaluation_before": before,
            "evaluation_after": after,
            "evaluations": state.evaluations,
            "rollouts_before": rollouts[0] if rollouts else None,
            "rollouts_after": rollouts[-1] if rollouts else None,
            "largest_reward": max((abs(number_in(at[end]) or 0.0) for at in steps for end in ENDS), default=None),
            "dropped_steps": state.skipped,
            "gave_up": self.gave_up,
            "out_of_memory": state.out_of_memory,
            "engine": self.session.engine.name,
            "loader": self.session.student.loader,
            "sampled_tokens": state.tokens,
            "seconds": {name: round(seconds, 3) for name, seconds in state.seconds.items()},
            "peak_gib": round(state.peak_gib, 3),
            "planned_gib": planned and round(planned, 3),
            "weights": weights,
        }

    def _print_summary(self, summary: dict[str, Any]) -> None:
        config, path, seconds, finished = self.config, self.run.path, summary["seconds"], summary["finished"]

        def typed(inside: str = "") -> str:
            return shlex.quote(f"{path}{inside}")

        how = "finished" if finished else "gave up" if self.gave_up else "stopped"
        lines = [
            "",
            f"{how} at step {summary['steps']} of {config.steps}" + (f": {self.gave_up}" if self.gave_up else ""),
        ]
        for name in ("before", "after"):
            e, line = summary[f"evaluation_{name}"], summary[f"rollouts_{name}"]
            if e and "avg" in e:
                form = "6.3f" if config.eval_grader else "6.1%"
                mean, best = score_names(config.eval_samples, bool(config.eval_grader))
                lines.append(
                    f"  {name:6}  {mean} {e['avg']:{form}}   {best} "
                    f"{e['any']:{form}}   greedy {e['greedy']:{form}}   {e['length']:5.1f} tokens   {e['stop_share']:6.1%} "
                    "stop" + (f"   {near(e, whole=False)}" if "kl" in e else "")
                )
            elif e:
                lines.append(f"  {name:6}  {near(e)}, {ends(e)}")
            elif line and not (summary["evaluation_before"] or summary["evaluation_after"]):  # which would not compare
                lines.append(f"  {name:6}  {near(line)}, on the rollouts of step {line['step']}")
        if summary["evaluation_before"] or summary["evaluation_after"]:
            lines.append(f"  on      {self._asked(summary['evaluation_before'], summary['evaluation_after'])}")
        if (largest := summary["largest_reward"]) is not None and largest < NOTHING_PAID:
            lines.append(f"  no token was paid more than {largest:.1g} in size{self._advise()}")
        if summary["dropped_steps"]:
            lines.append(f"  {summary['dropped_steps']} steps were dropped (optim/skipped in metrics.jsonl)")
        if times := summary["out_of_memory"]:
            lines.append(f"  memory ran out {times}x; micro-batches are now of {self.state.token_budget:,} tokens")
        phases = ", ".join(f"{name} {clock(spent)}" for name, spent in seconds.items())
        planned = f" (planned {summary['planned_gib']:.2f})" if summary["planned_gib"] else ""
        files = "metrics.jsonl  tokens.jsonl  samples.jsonl  summary.json  config.yaml"
        lines += [
            f"  time    {clock(sum(seconds.values()))}: {phases}",
            f"  memory  peak {summary['peak_gib']:.2f} GiB{planned}",
            f"  files   {path}: {summary['weights']}/  {files}",
            "next:",
        ]
        command, other = "python -m poweropd_lite", "log_ratio" if config.reward == "power" else "power"
        if not finished and not self.gave_up:
            lines += [f"  go on:       train(resume={str(path)!r})"] if in_notebook() else []
            lines.append(f"  go on:       {command}.train --resume {typed()}")
        if finished and config.lr_schedule == "constant":
            lines.append(f"  train on:    {command}.train --resume {typed()} --steps {2 * config.steps}")
        if finished and not path.name.endswith("-other") and self._takes(other):  # that one was the comparison
            rest = f"--config {typed('/config.yaml')} --reward {other} --output {typed('-other')}"
            both = f"{typed()} {typed('-other')}"
            lines += [f"  compare:     {command}.train {rest}", f"               {command}.report {both}"]
        lines.append(f"  see it:      {command}.report {typed()}")
        trusted = " --trust-remote-code" * config.trust_remote_code  # which they ask for again
        lines.append(f"  talk to it:  {command}.chat {typed()}{trusted}")
        if finished:
            lines.append(f"  evaluate:    {command}.evaluate --model {typed()}{trusted}")
            if config.hold_out and config.loads_teacher and summary["accuracy_after"] is not None:
                teacher = shlex.quote(called(config, "teacher"))
                lines.append(f"  its teacher: {command}.evaluate --model {teacher} --problems-of {typed()}{trusted}")
            lines.append(f"  export:      {command}.export {typed()} --to gguf{trusted}")
        kind = "transformers.AutoModelForCausalLM" if config.full_finetune else "peft.AutoPeftModelForCausalLM"
        whole, weights = self.session.ready.pair.sides[0].whole, f"{path}/{summary['weights']}"
        if whole is None or config.full_finetune:
            lines.append(f"  use it:      {kind}.from_pretrained({weights!r})")
        else:
            lines.append(f"  use it:      {command}.export {typed()} --to adapter (to load on the whole {whole})")
        print("\n".join(lines), flush=True)

    def _advise(self) -> str:
        """The command that says what other rewards would pay; of a pair that it does not replay nothing."""
        command = f"python -m poweropd_lite.advise --config {shlex.quote(f'{self.run.path}/config.yaml')}"
        return f"; what other rewards would pay: {command}" * self.config.loads_teacher

    def _asked(self, before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
        """On what was scored and the KL estimated, and by how much it changed: errors as if the two were independent."""
        ready, known = self.session.ready, [record for record in (before, after) if record]
        shares = self.config.eval_grader is None
        name, _ = score_names(self.config.eval_samples, not shares)
        on = " and ".join(f"{len(of.prompts)} of {of.benchmark.name}" for of in ready.held_out)
        asked = [(f"{name} of {on}", "avg", 100 if shares else 1, ".1f" if shares else ".3f", " points" * shares)]
        there, few = sum(len(of.prompts) for of in ready.held_out), len(ready.unseen)
        asked += [(f"KL on {'the first ' * (few < there)}{few} prompts", "kl", 1, ".3f", " nats a token")]
        parts = []
        for what, key, scale, form, unit in asked:
            pairs: list[tuple[float, Any]] = [(r[key], r.get(f"{key}_error")) for r in known if r.get(key) is not None]
            if len(pairs) == 2 and self.state.step and None not in pairs[0] + pairs[1]:
                change, error = scale * (pairs[1][0] - pairs[0][0]), scale * math.hypot(pairs[0][1], pairs[1][1])
                what += f": {change:+{form}} ± {error:{form}}{unit}" + ", within noise" * is_noise(change, error)
            parts += [what] if pairs else []
        return (
            f"{'; '.join(parts)} (± one standard error)" if any(" ± " in part for part in parts) else "; ".join(parts)
        )

    def _takes(self, reward: str) -> bool:
        """Whether the run's other settings are those of a run of `reward`, too."""
        try:
            load_config(self.run.path / "config.yaml", reward=reward)
        except UserError:
            return False
        return True

    def _why_dropped(self, metrics: dict[str, float]) -> str:
        if not metrics["tokens/loss"]:
            return "no sampled token was in the loss"
        loss, norm, largest = metrics["loss"], metrics["optim/grad_norm"], metrics["optim/largest_weight"]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss:g} or gradient norm {norm:g} is not finite"
        moved = self.session.bounds.moved
        return f"it moved a weight by {moved:.3g}, to {largest:.3g} at the most (bounds: {FARTHEST:g} and {LARGEST:g})"
