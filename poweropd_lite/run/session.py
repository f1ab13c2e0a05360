"""Everything a run holds in memory: the checked pair, the prompts, student, teacher and optimizer, on one device.

`load_session` refuses what can be refused from tokenizers, configs and data before it loads any weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poweropd_lite.base.config import Config
from poweropd_lite.checks.findings import refuse
from poweropd_lite.checks.machine import check_machine, compute_dtype, device_name
from poweropd_lite.checks.pair import Pair, check_prompts, load_pair
from poweropd_lite.problems.benchmarks import Problems, find_benchmarks, load_problems
from poweropd_lite.problems.prompts import Prompt, load_prompts, say_skipped

if TYPE_CHECKING:
    import torch

    from poweropd_lite.engines.choose import Choice
    from poweropd_lite.method.logprobs import Sampling
    from poweropd_lite.method.rollout import Engine
    from poweropd_lite.models.student import Student
    from poweropd_lite.models.teacher import Teacher


@dataclass(frozen=True)
class Prepared:
    """What is settled before any weights are loaded. `config` has the loader and engine that auto found."""

    config: Config
    device: "torch.device"
    dtype: "torch.dtype"  # the compute dtype
    loader: "Choice"
    engine: "Choice"
    pair: Pair
    prompts: list[Prompt]
    held_out: list[Problems]

    @property
    def shared(self) -> bool:
        """Whether Unsloth's own vLLM samples, from the weights that are trained."""
        return self.loader.name == "unsloth" and self.engine.name == "vllm" and self.device.type == "cuda"

    @property
    def sampling(self) -> "Sampling":
        """How rollouts are drawn."""
        import torch

        from poweropd_lite.method.logprobs import Sampling

        forbidden = torch.tensor(self.pair.forbidden, dtype=torch.long, device=self.device)
        return Sampling(self.config.temperature, self.config.top_k, self.config.top_p, forbidden)


@dataclass
class Session:
    """A loaded run."""

    config: Config
    pair: Pair
    prompts: list[Prompt]
    held_out: list[Problems]  # what it is evaluated on; empty for nothing
    sampling: "Sampling"  # of the rollouts
    student: "Student"
    engine: "Engine"
    teacher: "Teacher"
    optimizer: "torch.optim.Optimizer"
    scaler: "torch.amp.GradScaler"  # does nothing but in float16
    planned_gib: float | None = None  # the planned peak of memory (plan/)

    def close(self) -> None:
        """Ends the engine."""
        self.engine.close()

    def set_learning_rate(self, step: int) -> float:
        """Sets and returns the learning rate of step `step` (from 0)."""
        lr = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr


def learning_rate(config: Config, step: int) -> float:
    """Returns the learning rate of step `step` (from 0): a linear warm-up, then constant, linear or cosine to zero."""
    import math

    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    decay = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
    return config.learning_rate * decay[config.lr_schedule]


def prepare(config: Config, say: Callable[[str], None]) -> Prepared:
    """Checks all of a run that can be checked from tokenizers, configs and data; raises UserError for what can't work."""
    import torch

    from poweropd_lite.engines.choose import choose_engine, choose_loader, hush_bitsandbytes

    hush_bitsandbytes()
    if config.threads:
        torch.set_num_threads(config.threads)
    loader = choose_loader(config)  # imports Unsloth, if it is to be used, before transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(config, device)
    if device.type == "cuda":
        # It would plan anew for each of the many lengths here, tens of milliseconds at a time (Hopper and newer).
        torch.backends.cuda.enable_cudnn_sdp(False)
    engine_choice = choose_engine(config, device, loader.name)
    # What auto found is the run's from now on: resumed where more is installed, it goes on as it began.
    config = config.model_copy(update={"loader": loader.name, "engine": engine_choice.name})
    refuse(check_machine(config, device))

    pair = load_pair(config)
    for notice in pair.notices:
        say(notice)
    prompts, skipped = load_prompts(config, pair.tokenizer)
    say_skipped(skipped, len(prompts), config.data, say)
    check_prompts(pair, config, prompts)
    if len(prompts) < config.batch_size:
        say(f"{len(prompts)} prompts, fewer than the batch of {config.batch_size}: each is used several times a step")
    held_out: list[Problems] = []
    if config.eval_benchmarks is not None:
        columns = (config.eval_prompt_column, config.eval_answer_column)
        for benchmark in find_benchmarks(config.eval_benchmarks, flag="--eval-benchmarks"):
            problems = load_problems(benchmark, pair.tokenizer, config, config.eval_problems, columns, say)
            held_out.append(problems)
            trained_on = {prompt.ids for prompt in prompts}
            overlap = sum(problem.ids in trained_on for problem in problems.prompts)
            if overlap:
                say(
                    f"{overlap} of {len(problems.prompts)} problems of {benchmark.name} are also training problems: "
                    "their score flatters"
                )

    return Prepared(config, device, dtype, loader, engine_choice, pair, prompts, held_out)


def load_sampler(ready: Prepared, say: Callable[[str], None]) -> "tuple[Student, Engine]":
    """Returns the student, seeded, and the engine that samples from it, asleep where it can be."""
    import transformers

    from poweropd_lite.engines.choose import load_engine
    from poweropd_lite.models.student import load_student

    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(ready.config.seed)
    student = load_student(ready.config, ready.device, ready.dtype, ready.loader.name, fast_inference=ready.shared)
    engine = load_engine(ready.engine, student, ready.config, ready.pair.stop_ids, say)
    engine.release()
    return student, engine


def load_session(config: Config, say: Callable[[str], None]) -> Session:
    """Loads a run; `say` gets a line on each thing worth knowing. Raises UserError for what can't work."""
    import torch

    from poweropd_lite.models.teacher import load_teacher
    from poweropd_lite.plan.planned import planned_gib

    ready = prepare(config, say)
    config, device, dtype = ready.config, ready.device, ready.dtype
    planned = planned_gib(config, device, dtype, ready.engine.name, ready.shared, say)
    student, engine = load_sampler(ready, say)  # asleep while the teacher is quantised
    try:
        teacher = load_teacher(config, device, dtype)
    except BaseException:
        engine.close()
        raise
    parameters = student.trainable()
    trained = sum(p.numel() for p in parameters.values())
    say(
        f"student {config.student} ({_kind(config)}: {trained:,} trained, {_name(dtype)})"
        f" <- teacher {config.teacher} ({config.teacher_bits}-bit), {len(ready.prompts):,} prompts"
        f"{''.join(f', evaluated on {len(p.prompts)} of {p.benchmark.name}' for p in ready.held_out)}, on {device_name(device)}"
    )
    loader, sampler = ready.loader, ready.engine
    say(f"student loaded by {loader.name} ({loader.why}); rollouts by {sampler.name} ({sampler.why})")
    return Session(
        config=config,
        pair=ready.pair,
        prompts=ready.prompts,
        held_out=ready.held_out,
        sampling=ready.sampling,
        student=student,
        engine=engine,
        teacher=teacher,
        optimizer=_optimizer(config, list(parameters.values())),
        # The loss is a sum over thousands of tokens, so float16 starts at a far smaller scale than torch's own 65,536.
        scaler=torch.amp.GradScaler(device.type, init_scale=16.0, enabled=dtype == torch.float16),
        planned_gib=planned,
    )


def _kind(config: Config) -> str:
    if config.full_finetune:
        return "every weight"
    return "LoRA" if config.student_bits == 16 else "LoRA on a 4-bit base"


def _optimizer(config: Config, parameters: list) -> "torch.optim.Optimizer":
    import torch

    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, lr=config.learning_rate, weight_decay=0.0)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
