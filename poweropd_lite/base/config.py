"""Every setting of a run: its default, its limits and one sentence on it. This file is the only home of training's defaults;
the other commands' are in their own settings.py.

`load_config` reads a YAML file (one of configs/ by name, or a path), then flags or keyword arguments on top; an unknown
key or an impossible combination is refused here, before torch is imported and before any model loads. The defaults are
the paper's recipe for Qwen3-0.6B-Base <- Qwen3-4B as LoRA on one 24 GB card.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from poweropd_lite.base.config_files import checked, config_path, read_yaml
from poweropd_lite.base.fields import Bits, as_literal, setting

BUNDLED = "bundled"  # as a model or data name: what is shipped inside the package
PLAIN_BUDGET = 8192  # tokens of a micro-batch where auto finds none: on a CPU, and of a card that is not known


def full_name(name: str, role: str) -> str:
    """Returns a model's name for a reader: what "bundled" stands for hangs on the role."""
    return f"{BUNDLED}-{role}" if name == BUNDLED else name


def marked(*marks: str) -> frozenset[str]:
    """Returns the settings of a run that bear one of these marks:

    - "resume": --resume takes it as a flag;
    - "sitting": it may differ between the sittings of one run, and changes no number;
    - "found": a run writes down what it found in place of what was asked;
    - "grid": reproduce sets it a run at a time;
    - "scores": accuracies are comparable only where it is the same;
    - "traced": the memory of a micro-batch or rollout of given size depends on it.
    """
    extras: dict[str, Any] = {name: field.json_schema_extra or {} for name, field in Config.model_fields.items()}
    return frozenset(name for name, extra in extras.items() if set(marks) & set(extra.get("marks", ())))


class Config(BaseModel):
    """One run. Fields are flags too: `top_k` is `--top-k`. Frozen: a changed setting is a new Config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    # The method
    reward: Literal["power", "log_ratio", "clip", "tanh", "zscore", "full_kl"] = setting(
        "power",
        "what a sampled token is paid (docs/method.md); full_kl is the full-vocabulary baseline",
        section="method",
        marks="grid",
    )
    alpha: float = setting(
        10.0,
        "exponent of the power reward p^alpha - q^alpha; other rewards ignore it",
        gt=0,
        le=1e6,
        marks="grid",
    )
    clip_limit: float = setting(1.0, "the clip reward's bound on the log ratio (paper: 1; released script: 5)", gt=0)
    tau: float = setting(5.0, "the tanh reward's scale: tanh(log ratio / tau)", gt=0)
    score: Literal["sampled", "full"] = setting(
        "sampled",
        "whose log-prob carries the gradient: the distribution sampled from (unbiased under top-k, top-p, temperature), or the untruncated one (released code)",
        marks="grid traced",
    )
    stop_mode: Literal["mask", "raw", "relabel", "cross_eos"] = setting(
        "mask",
        "the final stop token in the loss: left out, kept, relabelled as the teacher's stop for both, or as the teacher's stop for the teacher alone",
    )

    # The models
    student: str = setting(
        "Qwen/Qwen3-0.6B-Base",
        "hub id or folder of the model that learns; 'bundled' for the shipped one",
        min_length=1,
        section="models",
    )
    teacher: str = setting(
        "Qwen/Qwen3-4B", "hub id or folder of the model that scores; 'bundled' for the shipped one", min_length=1
    )
    teacher_bits: Bits = setting(
        4,
        "teacher weights: 4 is NF4 with double quantisation, 8 is LLM.int8 (CUDA), 16 the compute dtype, 32 float32",
    )
    student_bits: Annotated[Literal[4, 16], BeforeValidator(as_literal)] = setting(
        16, "weights of the student's frozen base: 16 is the compute dtype, 4 is NF4 (QLoRA)"
    )
    loader: Literal["auto", "unsloth", "peft"] = setting(
        "auto",
        "what loads the student; auto: Unsloth where it is installed and runs, PEFT elsewhere (same adapter, same names)",
        marks="resume found",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto",
        "compute dtype; auto: bfloat16 where the card has it, float16 with a loss scale on other cards (untested with Qwen3), float32 on a CPU",
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(as_literal)] = setting(
        "auto",
        "compile the decoder layers once for all lengths, at the first step; auto: on a card with triton, and not for Unsloth's own",
        marks="resume found",
    )
    full_finetune: bool = setting(
        False, "train every weight (float32 master weights) instead of a LoRA adapter", marks="traced"
    )
    lora_rank: int = setting(32, "rank of the LoRA adapter", ge=1, marks="traced")
    lora_alpha: float = setting(64.0, "LoRA's scale: the update is lora_alpha / lora_rank * B A", gt=0, marks="traced")
    lora_targets: str = setting(
        "all-linear",
        "modules that get an adapter: all-linear (all but the head), or names joined by commas",
        min_length=1,
        marks="traced",
    )
    modules_to_save: str = setting(
        "", "modules trained whole beside the adapter, joined by commas, such as embed_tokens,lm_head", marks="traced"
    )
    gradient_checkpointing: bool | Literal["auto"] = setting(
        "auto",
        "recompute activations in the backward pass: less memory, more time; auto: on a card without it where plan says that it fits",
        marks="traced found",
    )
    trust_remote_code: bool = setting(
        False, "run Python code that comes with a model; only for sources you trust", marks="traced"
    )

    # The prompts
    data: str = setting(
        "agentica-org/DeepScaleR-Preview-Dataset",
        "hub id, or a JSON, JSONL or Parquet file of problems; 'bundled' for the synthetic ones",
        min_length=1,
        section="prompts",
        marks="resume",
    )
    data_subset: str | None = setting(None, "configuration name of a hub data set, such as main for openai/gsm8k")
    data_split: str = setting("train", "split of a hub data set")
    prompt_column: str | None = setting(
        None,
        "column with the prompt: a text, or a list of {role, content} messages; if not given, of a row's problem, question, "
        "prompt, messages and conversations the first",
    )
    answer_column: str | None = setting(
        None,
        "column with the reference answer, which --hold-out scores by; if not given, of answer, final_answer, "
        "expected_answer and solution the first, or the assistant's turn that ends the messages",
    )
    hold_out: int = setting(
        0,
        "how many different prompts of the data are never trained on, chosen by a hash of each, and scored as "
        "--eval-benchmarks are: by their answers, or where there are none by the KL to the teacher alone",
        ge=0,
        marks="scores",
    )
    prompt_suffix: str = setting(
        "", "text added to the last user message as it stands; begin it with the space or newline it needs"
    )
    system_prompt: str = setting("", "system message put before every prompt; none when empty")
    enable_thinking: bool = setting(
        False, "what the chat template is told; off makes Qwen3 add an empty think block, as the released code does"
    )
    max_prompt_tokens: int = setting(1024, "longer prompts are left out, counted and named", ge=1)

    # The rollouts
    engine: Literal["auto", "vllm", "loop"] = setting(
        "auto",
        "what samples; auto: vLLM where it is installed and runs, the built-in loop elsewhere",
        section="rollouts",
        marks="resume found",
    )
    kernels: Annotated[Literal["auto", "off"], BeforeValidator(as_literal)] = setting(
        "auto",
        "our own Triton kernels where they run (CUDA of compute capability 8.0 and more, half precision): the same numbers to rounding, sooner; off: plain torch",
        marks="resume",
    )
    guard_every: int = setting(
        50,
        "steps between full checks that the engine samples from the weights that are trained; its log-probs are compared at every step",
        ge=1,
        marks="sitting",
    )
    importance_cap: float | None = setting(
        None,
        "if given, a token's reward is multiplied by min(q of the trainer / q of the engine, this), for engines that round differently",
        ge=1,
    )
    batch_size: int = setting(32, "prompts a step, one rollout each", ge=1)
    decode_batch_size: int | None = setting(
        None,
        "most completions decoded at once: the dial for keys and values; a whole batch if not given",
        ge=1,
    )
    max_new_tokens: int = setting(
        1024, "longest completion; one that reaches it is truncated and stays in the loss whole", ge=1
    )
    temperature: float = setting(1.0, "sampling temperature of the rollouts", gt=0, marks="traced")
    top_k: int = setting(
        0, "sample among the k likeliest ids; 0: among all (released code: 20)", ge=0, marks="grid traced"
    )
    top_p: float = setting(
        1.0,
        "sample among the fewest ids that hold this mass; 1: among all (released code: 0.95)",
        gt=0,
        le=1,
        marks="grid traced",
    )

    # The optimizer
    steps: int = setting(1500, "optimizer steps of the run", ge=1, section="optimizer", marks="resume")
    lr: float | None = setting(
        None,
        "learning rate; if not given, 5e-7 for full fine-tuning (the paper's) and 5e-6 for LoRA, which wants about ten times as much",
        gt=0,
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "learning rate after the warm-up: held, or falling to zero just after the last step"
    )
    warmup_steps: int = setting(0, "steps over which the learning rate rises linearly, under every schedule", ge=0)
    max_grad_norm: float = setting(1.0, "the gradient is scaled down to this norm if it is larger", gt=0)
    optimizer: Literal["adamw", "adamw8bit"] = setting(
        "adamw", "AdamW without weight decay; adamw8bit keeps its state in 8 bits (CUDA)"
    )
    token_budget: int | Literal["auto"] = setting(
        "auto",
        f"tokens (padding counted) of one micro-batch: the dial for activation memory; auto: {PLAIN_BUDGET:,}, or on a card the most that plan says fits",
        marks="resume found",
    )
    teacher_token_budget: int | Literal["auto"] | None = setting(
        "auto",
        "tokens of one micro-batch of the teacher's scoring; none: token_budget; auto: that, or on a card the most that plan says fits",
        marks="resume found",
    )

    # Evaluation
    eval_benchmarks: str | None = setting(
        None,
        "what the student is scored on, as --benchmarks of the evaluate command; none: on nothing",
        min_length=1,
        section="evaluation",
        marks="scores",
    )
    eval_prompt_column: str | None = setting(None, "as prompt_column of the evaluate command", marks="scores")
    eval_answer_column: str | None = setting(None, "as answer_column of the evaluate command", marks="scores")
    eval_problems: int = setting(256, "how many problems of each benchmark, from the first on", ge=1, marks="scores")
    eval_every: int = setting(0, "steps between evaluations; 0: only before and after training", ge=0)
    kl_prompts: int = setting(
        64,
        "on how many of the held-out prompts the KL to the teacher is estimated at each evaluation; 0: on none",
        ge=0,
    )
    eval_samples: int = setting(8, "completions a problem, for Avg@k", ge=1, marks="scores")
    eval_temperature: float = setting(0.6, "sampling temperature of evaluation, untruncated", gt=0, marks="scores")
    eval_max_new_tokens: int | None = setting(
        None, "longest completion in evaluation; max_new_tokens if not given", ge=1, marks="scores"
    )
    eval_batch_size: int = setting(32, "completions generated at once in evaluation", ge=1)

    # The run
    seed: int = setting(
        0, "fixes data order, adapter initialisation and sampling", ge=0, lt=2**32, section="run", marks="grid"
    )
    output: str | None = setting(
        None, "run folder; if not given, a new one under runs/", min_length=1, marks="sitting found grid"
    )
    save_every: int = setting(
        50, "steps between checkpoints; one is always made at the end and on Ctrl-C", ge=1, marks="sitting"
    )
    keep_checkpoints: int = setting(2, "how many of the latest checkpoints stay on disk", ge=1, marks="sitting")
    sample_every: int = setting(
        10, "steps between completions written to samples.jsonl, beside the first", ge=1, marks="sitting"
    )
    threads: int = setting(0, "CPU threads of torch; 0 leaves torch's own choice", ge=0, le=1024)
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "none", "also log there, through accelerate; metrics.jsonl is always written", marks="sitting"
    )

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: `lr`, or what suits the kind of training."""
        if self.lr is not None:
            return self.lr
        return 5e-7 if self.full_finetune else 5e-6

    @property
    def reward_label(self) -> str:
        """The reward's name for a reader, with alpha where it has one, such as "power 10"."""
        return f"power {self.alpha:g}" if self.reward == "power" else self.reward

    @property
    def pair(self) -> str:
        """The two models by their full names, such as "bundled-student <- bundled-teacher"."""
        return f"{full_name(self.student, 'student')} <- {full_name(self.teacher, 'teacher')}"

    @property
    def recomputes(self) -> bool:
        """Whether gradient checkpointing is on; it is where auto did not find that it need not be."""
        return self.gradient_checkpointing is not False

    @property
    def tokens_at_once(self) -> int:
        """Tokens of a micro-batch; where auto found none, PLAIN_BUDGET or one longest rollout."""
        plain = max(PLAIN_BUDGET, self.max_prompt_tokens + self.max_new_tokens)
        return plain if self.token_budget == "auto" else self.token_budget

    @property
    def teacher_tokens_at_once(self) -> int:
        """Tokens of a micro-batch of the teacher's scoring."""
        own = self.teacher_token_budget
        return self.tokens_at_once if own is None or own == "auto" else own

    @property
    def sizes(self) -> dict[str, Any]:
        """What plan finds for a card where it is auto, as it is elsewhere."""
        own = None if self.teacher_token_budget == "auto" else self.teacher_token_budget
        found = {"gradient_checkpointing": self.recomputes, "token_budget": self.tokens_at_once}
        return {**found, "teacher_token_budget": own}

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out problems to score."""
        return self.eval_benchmarks is not None or self.hold_out > 0

    @property
    def longest_rollout(self) -> int:
        """The most tokens that a prompt and its completion may have, in training and evaluation."""
        longest = max(self.max_new_tokens, (self.eval_max_new_tokens or 0) if self.evaluates else 0)
        return self.max_prompt_tokens + longest

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = []
        if self.score == "sampled" and self.stop_mode == "relabel" and self.reward != "full_kl":
            problems.append(
                "stop_mode relabel scores a token that was not sampled, which score sampled can't do; "
                "type --score full, or --stop-mode cross_eos"
            )
        longest = self.max_prompt_tokens + self.max_new_tokens
        for name in ("token_budget", "teacher_token_budget"):
            if isinstance(budget := getattr(self, name), int) and budget < longest:
                problems.append(
                    f"{name} {budget} is less than one longest rollout ({self.max_prompt_tokens} prompt + {self.max_new_tokens} "
                    f"new tokens); type --{name.replace('_', '-')} {longest}, or lower --max-prompt-tokens"
                )
        if self.warmup_steps >= self.steps:
            problems.append(
                f"warmup_steps {self.warmup_steps} leaves no step of {self.steps} at the full learning rate; "
                f"type --warmup-steps {self.steps // 20}"
            )
        if self.full_finetune and self.student_bits == 4:
            problems.append("full_finetune trains every weight, and a 4-bit weight can't be; type --student-bits 16")
        if self.engine == "vllm" and (self.full_finetune or self.modules_to_save):
            problems.append(
                "engine vllm is sent an adapter, and nothing else can be trained with it; type --engine loop"
            )
        if self.importance_cap is not None and self.reward == "full_kl":
            problems.append("full_kl has no reward to weigh; leave out --importance-cap, or choose another --reward")
        if self.full_finetune and self.modules_to_save:
            problems.append("full_finetune trains every module already; leave out --modules-to-save")
        if self.eval_every and not self.evaluates:
            problems.append(
                "eval_every needs problems to score; type --eval-benchmarks math500 (or a file), --hold-out 100 for some of "
                "the data, or --eval-every 0"
            )
        if "lm_head" in [name.strip() for name in self.lora_targets.split(",")]:
            problems.append("an adapter on lm_head is not supported; train the head whole: --modules-to-save lm_head")
        if self.full_finetune and self.dtype == "float16":
            problems.append("full_finetune in float16 loses small updates; type --dtype bfloat16 or --dtype float32")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def load_config(config: str | Path | None = None, **overrides: Any) -> Config:
    """Returns the Config of a YAML file (a path, or a name from configs/ such as "bundled") with `overrides` on top.

    Raises UserError for a missing or malformed file, an unknown key (naming the nearest one), a bad value, or a
    combination that can't work; every fault found is in the one message.
    """
    values: dict[str, Any] = read_yaml(config_path(config)) if config is not None else {}
    values.update(overrides)
    if (
        overrides.get("eval_benchmarks", "") is None
        and "eval_every" not in overrides
        and str(values.get("hold_out") or 0) == "0"
    ):
        values["eval_every"] = 0  # --eval-benchmarks none alone is enough
    in_file = config is not None and not set(values) - set(Config.model_fields) <= set(overrides)
    return checked(Config, values, f" in {config}" if in_file else "")
