"""The run's notebook: what each step and evaluation gave, on screen and in the run folder, and when to save.

The loop in train.py stays readable because timing, files, counting and the closing summary are here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from poweropd_lite.base.config_files import dump_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import whole_folder, write_json, write_text
from poweropd_lite.base.memory import peak_gib
from poweropd_lite.base.notebook import in_notebook
from poweropd_lite.base.progress import clock
from poweropd_lite.method.batch import loss_lengths
from poweropd_lite.run import checkpoint
from poweropd_lite.run.folder import RunFolder
from poweropd_lite.run.live import show_progress
from poweropd_lite.run.metrics import JsonLines, Tracker
from poweropd_lite.run.token_stats import due, pieces, reward_range, rounded, token_stats

if TYPE_CHECKING:
    from torch import Tensor

    from poweropd_lite.base.stop import StopRequest
    from poweropd_lite.method.rollout import Rollout
    from poweropd_lite.models.probe import Probe
    from poweropd_lite.run.session import Session

MAX_DROPPED_IN_A_ROW = 10


@dataclass(frozen=True)
class Results:
    """What `train` returns."""

    run: Path  # the run folder
    summary: dict  # as in summary.json
    finished: bool  # False if a signal stopped it; `--resume` goes on
    signal: int  # which one, or 0


class Recorder:
    """Records one sitting of a run, from its latest checkpoint (or from the start) on."""

    def __init__(self, run: RunFolder, session: "Session") -> None:
        self.run, self.session, self.config = run, session, session.config
        saved = checkpoint.checkpoints(run.checkpoints)
        self.state = checkpoint.RunState()
        if saved:
            s = session
            self.state = checkpoint.load_checkpoint(saved[-1], s.student, s.optimizer, s.scaler, s.config)
            print(f"resuming {run.path} at step {self.state.step} of {self.config.steps}")
        self.unsaved = not saved  # whether the state has moved on since the latest checkpoint
        self.metrics = JsonLines(run.path / "metrics.jsonl")
        self.samples = JsonLines(run.path / "samples.jsonl")
        self.tokens = JsonLines(run.path / "tokens.jsonl")
        for file in (self.metrics, self.samples, self.tokens):
            file.rewind(self.state.step if saved else -1)
        write_text(run.path / "config.yaml", dump_yaml(session.config))
        self.tracker = Tracker(self.config, run.path)
        self.progress = show_progress(self.config, self.state.step, self.metrics.path)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.tracker.close()

    def step(self, rollouts: "Sequence[Rollout]", metrics: dict[str, float], rewards: "Tensor") -> None:
        """Records a step that was just taken, with what its N tokens were paid [N].

        Raises UserError if it is the tenth in a row that had to be dropped.
        """
        state, self.unsaved = self.state, True
        state.step += 1
        dropped = bool(metrics["optim/skipped"])
        state.skipped += dropped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if dropped else 0
        lengths = [len(r.completion_ids) for r in rollouts]
        state.tokens += sum(lengths)
        stops = sum(r.finish == "stop" for r in rollouts) / len(rollouts)
        for phase in ("rollout", "teacher", "student", "guard", "optimizer"):
            self._spend(phase, metrics.get(f"time/{phase}", 0.0))
        state.peak_gib = max(state.peak_gib, peak_gib())
        metrics |= {
            "rollout/length": sum(lengths) / len(lengths),
            "rollout/stop_share": stops,
            "rollout/truncated_share": 1.0 - stops,
            "rollout/logprob": sum(sum(r.logprobs) for r in rollouts) / sum(lengths),
            "tokens/total": state.tokens,
            "optim/lr": self.session.optimizer.param_groups[0]["lr"],
            "optim/skipped_total": state.skipped,
            "time/tokens_per_second": sum(lengths) / metrics["time/step"],
            "memory/peak_gib": state.peak_gib,
            **({"memory/planned_gib": planned} if (planned := self.session.planned_gib) else {}),
        }
        self.metrics.write(state.step, metrics)
        self.tracker.log(state.step, metrics)
        self.progress.step(state.step, metrics)
        if state.step == 1 or state.step % self.config.sample_every == 0:
            self._write_sample("train", rollouts[0], rewards)
        self._write_tokens(rollouts, rewards)
        if dropped:
            self.progress.say(f"step {state.step} dropped: {_why_dropped(metrics)}")
        if state.skipped_in_a_row == MAX_DROPPED_IN_A_ROW:
            raise UserError(
                f"{MAX_DROPPED_IN_A_ROW} steps in a row were dropped, the last because {_why_dropped(metrics)}; the weights "
                f"are as before them. Lower --lr (now {self.config.learning_rate:g}), or look at {self.metrics.path}"
            )

    def say(self, text: str) -> None:
        """Prints a line without breaking the progress bar."""
        self.progress.say(text)

    def evaluate_if_due(self, stop: "StopRequest") -> None:
        """Evaluates before the first step, after the last, and every `eval_every`; a stop request cuts it short."""
        state, config = self.state, self.config
        due = state.step in (0, config.steps) or (config.eval_every and state.step % config.eval_every == 0)
        if not due or not self.session.held_out or state.evaluated == state.step or stop:
            return
        from poweropd_lite.evaluate.sampling import evaluate_student

        def tick(done: int, total: int) -> bool:
            self.progress.evaluating(done, total)
            return not stop

        started = time.monotonic()
        s = self.session
        s.engine.sync()
        done = evaluate_student(s.engine, s.held_out, s.pair, config, s.student.device, tick)
        s.engine.release()
        if done is None:
            return
        result, rollout = done
        seconds = time.monotonic() - started
        self._spend("evaluate", seconds)
        metrics = result.metrics() | {"time/evaluate": seconds}
        self.metrics.write(state.step, metrics)
        self.tracker.log(state.step, metrics)
        self._write_sample("eval", rollout)
        self.unsaved = True
        state.evaluated, state.evaluations[str(state.step)] = state.step, result.record()
        self.progress.evaluated(state.step, metrics)
        e = result.summary()
        self.progress.say(
            f"evaluation at step {state.step}: Avg@{config.eval_samples} {e['avg']:.1%}, greedy {e['greedy']:.1%}, "
            f"{e['length']:.0f} tokens, {e['stop_share']:.1%} stop ({clock(seconds)})"
            + "".join(f"; {name} {s.avg:.1%}" for name, s in result.scores.items() if len(result.scores) > 1)
            + (f"; {e['undecided']} answers could not be graded" if e["undecided"] else "")
        )

    def save_if_due(self) -> None:
        """Saves every `save_every` steps."""
        if self.state.step % self.config.save_every == 0:
            self.save()

    def finish(self, stop: "StopRequest") -> Results:
        """Saves what is not saved yet, hands over the trained weights, writes summary.json and prints the summary."""
        finished = self.state.step >= self.config.steps and not stop
        self.progress.close()
        self.save()
        started = time.monotonic()
        weights = self._hand_over()
        self._spend("save", time.monotonic() - started)
        summary = self._summary(finished, weights)
        write_json(self.run.path / "summary.json", summary)
        self._print_summary(summary)
        return Results(self.run.path, summary, finished, stop.signal)

    def save(self) -> None:
        """Writes a checkpoint of where the run stands."""
        if not self.unsaved:  # a checkpoint is never replaced by its equal: between two renames there would be none
            return
        started = time.monotonic()
        self.metrics.sync()
        self.samples.sync()
        self.tokens.sync()
        s = self.session
        checkpoint.save_checkpoint(self.run.checkpoints, self.state, s.student, s.optimizer, s.scaler, self.config)
        self.unsaved = False
        self._spend("save", time.monotonic() - started)

    def _hand_over(self) -> str:
        """Writes adapter/ in PEFT's format, or model/ after full fine-tuning, with the tokenizer; returns which."""
        from transformers import GenerationConfig

        name = "model" if self.config.full_finetune else "adapter"
        with whole_folder(self.run.path / name) as beside:
            self.session.student.model.save_pretrained(beside)
            self.session.pair.tokenizer.save_pretrained(beside)
            # Whoever samples from it stops where training did: at the student's stops and the teacher's.
            GenerationConfig(eos_token_id=sorted(self.session.pair.stop_ids)).save_pretrained(beside)
            try:
                self._what_it_says().write(beside)
            except (UserError, RuntimeError) as error:  # no memory left, say: the weights are worth having without it
                print(f"no reference.json beside the weights: {error}; export will not know them again by it")
        return name

    def _what_it_says(self) -> "Probe":
        """The live student's log-probs on fixed texts, by which export knows the weights again."""
        from poweropd_lite.models.probe import probe, probe_texts

        student = self.session.student
        own_kernels = student.loader == "unsloth" and student.device.type == "cuda"
        arithmetic = student.compute() if own_kernels else None
        said = probe(student.model, probe_texts(self.session.pair.tokenizer), arithmetic=arithmetic)
        base = "float32" if self.config.full_finetune else str(student.dtype).removeprefix("torch.")
        return replace(said, base_bits=self.config.student_bits, base_dtype=base)

    def _write_sample(self, kind: str, rollout: "Rollout", rewards: "Tensor | None" = None) -> None:
        decode = self.session.pair.tokenizer.decode
        sample = {"prompt": decode(list(rollout.prompt_ids)), "completion": decode(list(rollout.completion_ids))}
        if rewards is not None:
            length = loss_lengths([rollout], self.config.stop_mode)[0]
            sample["tokens"] = pieces(decode, rollout.completion_ids)
            sample["rewards"] = [rounded(reward) for reward in rewards[:length].tolist()]
        self.samples.write(self.state.step, {"kind": kind, "finish": rollout.finish, **sample})

    def _write_tokens(self, rollouts: "Sequence[Rollout]", rewards: "Tensor") -> None:
        config = self.config
        if due(self.state.step, config.steps):
            bounds = reward_range(config.reward, config.clip_limit)
            lengths = loss_lengths(rollouts, config.stop_mode)
            self.tokens.write(self.state.step, token_stats(rewards, lengths, bounds, config.max_new_tokens))

    def _spend(self, phase: str, seconds: float) -> None:
        self.state.seconds[phase] = self.state.seconds.get(phase, 0.0) + seconds

    def _summary(self, finished: bool, weights: str) -> dict:
        state, config = self.state, self.config
        planned = self.session.planned_gib
        before, after = state.evaluations.get("0"), state.evaluations.get(str(state.step))
        return {
            "finished": finished,
            "steps": state.step,
            "reward": config.reward,
            "alpha": config.alpha if config.reward == "power" else None,
            "score": config.score,
            "seed": config.seed,
            "accuracy_before": before and before["avg"],
            "accuracy_after": after and after["avg"],
            "evaluation_before": before,
            "evaluation_after": after,
            "evaluations": state.evaluations,
            "dropped_steps": state.skipped,
            "out_of_memory": state.out_of_memory,
            "engine": self.session.engine.name,
            "loader": self.session.student.loader,
            "sampled_tokens": state.tokens,
            "seconds": {name: round(seconds, 3) for name, seconds in state.seconds.items()},
            "peak_gib": round(state.peak_gib, 3),
            "planned_gib": planned and round(planned, 3),
            "weights": weights,
        }

    def _print_summary(self, summary: dict) -> None:
        config, path, seconds = self.config, self.run.path, summary["seconds"]
        lines = ["", f"{'finished' if summary['finished'] else 'stopped'} at step {summary['steps']} of {config.steps}"]
        for name, key in (("before", "evaluation_before"), ("after", "evaluation_after")):
            if e := summary[key]:
                lines.append(
                    f"  {name:6}  Avg@{config.eval_samples} {e['avg']:6.1%}   Pass@{config.eval_samples} {e['any']:6.1%}   "
                    f"greedy {e['greedy']:6.1%}   {e['length']:5.1f} tokens   {e['stop_share']:6.1%} stop"
                )
        if summary["dropped_steps"]:
            lines.append(f"  {summary['dropped_steps']} steps were dropped (non-finite, or no token in the loss)")
        if summary["out_of_memory"]:
            lines.append(
                f"  memory ran out {summary['out_of_memory']}x; micro-batches are now of {self.state.token_budget:,} tokens"
            )
        total = sum(seconds.values())
        lines.append(f"  time    {clock(total)}: " + ", ".join(f"{k} {clock(v)}" for k, v in seconds.items()))
        planned = f" (planned {summary['planned_gib']:.2f})" if summary["planned_gib"] else ""
        lines.append(f"  memory  peak {summary['peak_gib']:.2f} GiB{planned}")
        lines.append(
            f"  files   {path}: {summary['weights']}/  metrics.jsonl  tokens.jsonl  samples.jsonl  summary.json  config.yaml"
        )
        lines.append("next:")
        if not summary["finished"]:
            if in_notebook():
                lines.append(f"  go on:       train(resume='{path}')")
            lines.append(f"  go on:       python -m poweropd_lite.train --resume {path}")
        else:
            if config.lr_schedule == "constant":
                lines.append(f"  train on:    python -m poweropd_lite.train --resume {path} --steps {2 * config.steps}")
            lines.append(
                f"  compare:     python -m poweropd_lite.train --config {path}/config.yaml {_other(config)} --output {path}-other"
            )
        lines.append(f"  see it:      python -m poweropd_lite.report {path}")
        if summary["finished"]:
            lines.append(f"  evaluate:    python -m poweropd_lite.evaluate --model {path}")
            lines.append(f"  export:      python -m poweropd_lite.export {path} --to gguf")
        lines.append(f"  use it:      {_use(config, path)}")
        print("\n".join(lines), flush=True)


def _other(config) -> str:
    return "--reward log_ratio" if config.reward == "power" else "--reward power"


def _use(config, path: Path) -> str:
    if config.full_finetune:
        return f"transformers.AutoModelForCausalLM.from_pretrained('{path}/model')"
    return f"peft.AutoPeftModelForCausalLM.from_pretrained('{path}/adapter')"


def _why_dropped(metrics: dict[str, float]) -> str:
    if not metrics["tokens/loss"]:
        return "no sampled token was in the loss"
    return f"loss {metrics['loss']:g} or gradient norm {metrics['optim/grad_norm']:g} is not finite"
