"""Everything a run holds in memory: the checked pair, the prompts, student, teacher and optimizer, on one device.

`load_session` refuses what can be refused from tokenizers, configs and data before it loads any weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.base.errors import UserError, notices, refuse
from poweropd_lite.base.ranks import ALONE, Alone
from poweropd_lite.base.teachers import SELF, called, how_kept
from poweropd_lite.checks.grader import check_grader
from poweropd_lite.checks.machine import check_machine, compute_dtype, device_name
from poweropd_lite.checks.modules import check_experts, check_modules
from poweropd_lite.checks.pair import Pair, check_prompts, load_pair
from poweropd_lite.checks.reward import check_reward, reward_settings
from poweropd_lite.engines.choose import Choice, choose_engine, choose_loader, load_engine
from poweropd_lite.engines.guard import Guard, sample_whole
from poweropd_lite.kernels import head
from poweropd_lite.method.batch import Stops
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import LOSS, TRAINING, Draws, Engine, Rollout
from poweropd_lite.method.update import Objective
from poweropd_lite.models.compiled import choose_compile
from poweropd_lite.models.saved import settle_adapter
from poweropd_lite.models.served import ServedTeacher, connect
from poweropd_lite.models.student import Student, load_student
from poweropd_lite.models.teacher import SelfTeacher, Teacher, load_teacher
from poweropd_lite.problems.benchmarks import HELD_OUT, Problems, find_benchmarks, load_problems, of_held_out
from poweropd_lite.problems.prompts import Prompt, step_indices
from poweropd_lite.problems.reading import hold_out, load_prompts, say_skipped
from poweropd_lite.problems.stored import messages_digests
from poweropd_lite.rewards.part import Part
from poweropd_lite.rewards.reward import Reward
from poweropd_lite.run.bounds import Bounds
from poweropd_lite.run.closeness import shown

SMALL = 100_000_000  # weights of a student
LOSS_SCALE, SCALE_GROWS = 16.0, 100  # float16's, at first, and after so many steps without an overflow it is doubled


@dataclass(frozen=True)
class Prepared:
    """What is settled before any weights are loaded. `config` has the loader and engine that auto found."""

    config: Config
    device: torch.device
    dtype: torch.dtype  # the compute dtype
    loader: Choice
    engine: Choice
    pair: Pair
    prompts: Sequence[Prompt]  # of a large file, on disk
    held_out: list[Problems]  # with answers, or for a user's function
    own: Reward | None  # a user's
    unseen: list[Prompt]  # on which the KL to the teacher is estimated: the first held-out ones, with answers or not

    @property
    def shared(self) -> bool:
        """Whether Unsloth's own vLLM samples, from the weights that are trained."""
        return self.loader.name == "unsloth" and self.engine.name == "vllm" and self.device.type == "cuda"

    def sample(self, engine: Engine, step: int, lines: int | None = None, ranks: Alone = ALONE) -> list[Rollout]:
        """Returns the rollouts of step `step` (from 0), or the first `lines` of them, from the engine's weights.

        Of several `ranks` each samples its share, and all are told of all.
        """
        c, count = self.config, lines or self.config.batch_size
        rows = range(count)[ranks.share(count)]
        indices = step_indices(len(self.prompts), c.batch_size, c.seed, step)[rows.start : rows.stop]
        prompts, draws = [self.prompts[i] for i in indices], Draws(c.seed, TRAINING, step, tuple(rows))
        asked = [prompt.ids for prompt in prompts]
        return ranks.gather(
            shown(sample_whole(engine, asked, draws, self.objective.sampling, c.max_new_tokens), prompts)
        )

    @cached_property
    def objective(self) -> Objective:
        """What the student learns from its rollouts, and how these are drawn."""
        c = self.config
        forbidden = torch.tensor(self.pair.forbidden, dtype=torch.long, device=self.device)
        return Objective(
            reward=c.reward,
            settings=reward_settings(c),
            own=self.own,
            baseline=c.baseline,
            part=Part(c.keep, c.keep_share, c.keep_over, c.dial_balance, c.weight, c.weight_gain, c.horizon),
            sampling=Sampling(c.temperature, c.top_k, c.top_p, forbidden),
            score=c.score,
            stops=Stops(c.stop_mode, self.pair.teacher_stop),
            importance_cap=c.importance_cap,
        )


@dataclass
class Session:
    """A loaded run."""

    ready: Prepared
    student: Student
    engine: Engine
    teacher: Teacher | SelfTeacher | ServedTeacher
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # does nothing but in float16
    ranks: Alone = ALONE  # who takes its steps

    @cached_property
    def bounds(self) -> Bounds:
        """What undoes steps that leave impossible weights."""
        return Bounds(self.student, self.optimizer)

    @property
    def reference(self) -> SelfTeacher | None:
        """The student without its adapter, for a reward that asks for it."""
        return SelfTeacher(self.student) if "log_ref" in self.ready.objective.entry.needs else None

    def draws(self, step: int) -> Draws | None:
        """The random numbers of a step's loss, where it asks for any."""
        objective = self.ready.objective
        asks = "noise" in objective.entry.needs or objective.part.keep == "random"
        return Draws(self.config.seed, LOSS, step, (0, 1)) if asks else None

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.ready.config

    @property
    def compile_seconds(self) -> dict[str, float]:
        """What compiling has taken so far, by whose layers."""
        sides = {"teacher": self.teacher.compiled, "student": self.student.compiled}
        return {side: compiled.seconds for side, compiled in sides.items() if compiled is not None}

    def close(self) -> None:
        """Ends the engine."""
        self.engine.close()

    def guard(self, first_gap: float | None) -> Guard:
        """Returns what compares the engine with the trainer; `first_gap` is of the run's first step, once taken."""
        o = self.ready.objective
        return Guard(self.engine, self.student, o.sampling, o.stops, self.config.guard_every, first_gap)

    def set_learning_rate(self, step: int) -> float:
        """Sets and returns the learning rate of step `step` (from 0)."""
        lr = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr


def learning_rate(config: Config, step: int) -> float:
    """Returns the learning rate of step `step` (from 0): a linear warm-up, then constant, linear or cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    decay = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 * (1.0 + math.cos(math.pi * share))}
    return config.learning_rate * decay[config.lr_schedule]


def prepare(config: Config, say: Callable[[str], None]) -> Prepared:
    """Checks all of a run that can be checked from tokenizers, configs and data; raises UserError for what can't."""
    if config.eval_grader:
        check_grader(config.eval_grader, "--eval-grader")
    entry = check_reward(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    config = settle_adapter(config, say)
    loader = choose_loader(config)  # imports Unsloth, if it is to be used, before transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(config.dtype, device)
    if device.type == "cpu" and not config.student.startswith(BUNDLED):
        say("no CUDA: student and teacher run on the CPU")
    if device.type == "cuda":
        # It would plan anew for each of the many lengths here, tens of milliseconds at a time (Hopper and newer).
        torch.backends.cuda.enable_cudnn_sdp(False)
    engine_choice = choose_engine(config, device, dtype, loader.name)
    # What auto found is the run's from now on: resumed where more is installed, it goes on as it began.
    compiling = choose_compile(config.compile, loader.name, device)
    config = changed(config, loader=loader.name, engine=engine_choice.name, compile=compiling)
    refuse(check_machine(config, device))

    pair = load_pair(config)
    modules = [check_modules(config, pair.sides[0]), *check_experts(config, *pair.sides)]
    refuse(modules)
    for notice in (*pair.notices, *notices(modules)):
        say(notice)
    by_row = bool(config.eval_grader and config.hold_out)
    prompts, skipped = load_prompts(config, pair.tokenizer, say=say, teacher=pair.apart, keep_rows=by_row)
    say_skipped(skipped, len(prompts), config.data, say)
    check_prompts(pair, config, prompts)
    prompts, held_out, unseen = settle_held_out(config, pair, prompts, say)
    if len(prompts) < config.batch_size:
        say(f"{len(prompts)} prompts, fewer than the batch of {config.batch_size}: each is used several times a step")
    own = entry if ":" in config.reward else None
    return Prepared(config, device, dtype, loader, engine_choice, pair, prompts, held_out, own, unseen)


def settle_held_out(
    config: Config, pair: Pair, prompts: Sequence[Prompt], say: Callable[[str], None]
) -> tuple[Sequence[Prompt], list[Problems], list[Prompt]]:
    """Returns the prompts to train on, the problems to score, and the prompts on which the KL to the teacher is estimated."""
    held_out: list[Problems] = []
    kept: list[Prompt] = []
    if config.hold_out:
        count = len(prompts)
        prompts, kept = hold_out(prompts, config.hold_out, config.data)
        if copies := count - len(prompts) - len(kept):
            say(f"{copies:,} copies of held-out prompts are not trained on either")
        own = of_held_out(kept, config.data)
        held_out += [own] if own.prompts else []
        if not own.prompts and not config.kl_prompts:
            raise UserError(
                "--hold-out has no answers to score by, and --kl-prompts 0 leaves nothing else; type a number"
            )
        if without := len(kept) - len(own.prompts):
            say(
                f"{without} of {len(kept)} held-out prompts have no answer: they are scored by the KL to the teacher alone"
            )
    benchmarks = find_benchmarks(config.eval_benchmarks, flag="--eval-benchmarks") if config.eval_benchmarks else []
    columns = (config.eval_prompt_column, config.eval_answer_column)
    for benchmark in benchmarks:
        ways = config.eval_problems, columns, say, pair.apart, bool(config.eval_grader)
        problems = load_problems(benchmark, pair.tokenizer, config, *ways)
        held_out.append(problems)
        asked = {problem.messages_digest for problem in problems.prompts}  # the teacher may read more
        seen = {each for each in messages_digests(prompts) if each in asked}
        if overlap := sum(problem.messages_digest in seen for problem in problems.prompts):
            many = f"{overlap} of {len(problems.prompts)} problems of {benchmark.name}"
            say(f"{many} are also training problems: their score flatters")
    unseen = kept + [
        prompt for problems in held_out for prompt in problems.prompts if problems.benchmark.name != HELD_OUT
    ]
    if pair.apart is not None and config.kl_prompts:
        count, unseen = len(unseen), [prompt for prompt in unseen if prompt.teacher_ids]
        if without := count - len(unseen):
            many = f"{without} of {count}" if unseen else f"all {count}"
            found = f"{many} held-out prompts lack what the teacher reads more than the student, or it is too long"
            none = "the KL to the teacher is not estimated; --hold-out N keeps prompts of the data for it"
            say(f"{found}: {'their KL is not estimated' if unseen else none}")
    return prompts, held_out, unseen[: config.kl_prompts]


def load_sampler(ready: Prepared, say: Callable[[str], None]) -> tuple[Student, Engine]:
    """Returns the student, seeded, and the engine that samples from it, asleep where it can be."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(ready.config.seed)
    head.switch(ready.config.kernels)
    if ready.device.type == "cuda" and not head.switched_off and (fault := head.fault(torch.cuda.current_device())):
        say(f"log-probs without the kernels for a card, which is slower: {fault}")
    student = load_student(ready.config, ready.device, ready.dtype, ready.loader.name, fast_inference=ready.shared)
    engine = load_engine(ready.engine, student, ready.config, ready.pair.stop_ids, say)
    with _closed_if_stopped(engine):
        engine.release()
    return student, engine


@contextmanager
def _closed_if_stopped(engine: Engine) -> Iterator[None]:
    """Ends the engine where the block does not end well: a signal may come anywhere, and vLLM would keep the card."""
    try:
        yield
    except BaseException:
        engine.close()
        raise


def teacher_of(config: Config, student: Student) -> Teacher | SelfTeacher:
    """Returns the teacher of a run: a second model, or the student's own base."""
    if config.teacher == SELF:
        return SelfTeacher(student)
    device, dtype = student.device, student.dtype
    of_teacher = config.teacher, config.teacher_bits, device, dtype, config.trust_remote_code
    return load_teacher(*of_teacher, offload=config.teacher_offload)


def load_session(ready: Prepared, say: Callable[[str], None], ranks: Alone = ALONE) -> Session:
    """Loads a run; `say` gets a line on each thing worth knowing. Raises UserError for what can't work."""
    config, device, dtype = ready.config, ready.device, ready.dtype
    served = connect(config, say) if config.served else None
    student, engine = load_sampler(ready, say)  # asleep while the teacher is quantised
    with _closed_if_stopped(engine):
        teacher = teacher_of(config, student) if served is None else served
        if config.compile == "on":
            student.compile(say)
            if isinstance(teacher, Teacher) and config.teacher_bits != 8:  # LLM.int8 looks at numbers between products
                teacher.compile(say)
        parameters = student.trainable()
        optimizer = _optimizer(config, list(parameters.values()))
    kind = "every weight" if config.full_finetune else "LoRA" if config.student_bits == 16 else "LoRA on a 4-bit base"
    kind += f" from the adapter in {config.adapter}" if config.adapter is not None else ""
    trained = f"{sum(p.numel() for p in parameters.values()):,} trained, {str(dtype).removeprefix('torch.')}"
    evaluated = "".join(f", evaluated on {len(p.prompts)} of {p.benchmark.name}" for p in ready.held_out)
    if config.hold_out and not ready.held_out:
        evaluated += f", KL to the teacher on {len(ready.unseen)} held-out ones"
    say(
        f"{called(config, 'student')} ({kind}: {trained}) <- {called(config, 'teacher')} ({how_kept(config)}), "
        f"{len(ready.prompts):,} prompts{evaluated}, on {device_name(device)}"
    )
    weights = _weights(student.model)
    if config.lr is None and weights < SMALL:
        say(
            f"lr {config.learning_rate:g}, the default, is for students of {SMALL:,} weights and more, and this one has {weights:,}: "
            f"it may learn next to nothing; the bundled pair's is {3e-4 if config.full_finetune else 2e-3:g} (configs/bundled.yaml)"
        )
    loader, sampler = ready.loader, ready.engine
    say(f"student loaded by {loader.name} ({loader.why}); rollouts by {sampler.name} ({sampler.why})")
    return Session(ready, student, engine, teacher, optimizer, loss_scaler(device, dtype), ranks)


def _weights(model: torch.nn.Module) -> int:
    """How many numbers a model's matrices have, an adapter's left out and 4-bit ones counted as what they stand for."""
    own = [p for name, p in model.named_parameters() if "lora_" not in name]
    return sum(math.prod(state.shape) if (state := getattr(p, "quant_state", None)) else p.numel() for p in own)


def loss_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Returns the loss scale of a run, which float16 alone has: halved by a step that overflows, doubled after so many that don't.

    The loss is a sum over thousands of tokens, so it starts far below torch's own 65,536; and it must be able to grow within a
    run, which it can't in torch's own 2,000 steps.
    """
    enabled = dtype == torch.float16
    scaler = torch.amp.GradScaler(device.type, LOSS_SCALE, growth_interval=SCALE_GROWS, enabled=enabled)
    scaler.scale(torch.zeros((), device=device))  # makes its tensor: a process without a token in the loss would not
    return scaler


def _optimizer(config: Config, parameters: list) -> torch.optim.Optimizer:
    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, lr=config.learning_rate, weight_decay=0.0)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)  # without copies
