"""Every setting of a run: its default, its limits and one sentence on it. This file is the only home of training's defaults;
the other commands' are in their own settings.py.

`load_config` reads a YAML file (one of configs/ by name, or a path), then flags or keyword arguments on top; an unknown
key or an impossible combination is refused here, before torch is imported and before any model loads. The defaults are
the paper's recipe for Qwen3-0.6B-Base <- Qwen3-4B as LoRA on one 24 GB card.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from poweropd_lite.base.combinations import impossible
from poweropd_lite.base.config_files import checked, config_path, read_yaml
from poweropd_lite.base.fields import Bits, Kernels, Mapping, as_literal, setting
from poweropd_lite.base.objective import ObjectiveSettings
from poweropd_lite.base.teachers import BUNDLED as BUNDLED
from poweropd_lite.base.teachers import SELF, called, is_address
from poweropd_lite.base.teachers import full_name as full_name
from poweropd_lite.rewards.table import reward_of

MOST_RANK = 16_384  # of an adapter: no model is wider
PLAIN_BUDGET = 8192  # tokens of a micro-batch where auto finds none: on a CPU, and of a card that is not known


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


class Config(ObjectiveSettings):
    """One run. Fields are flags too: `top_k` is `--top-k`. Frozen: a changed setting is a new Config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    # The models
    student: str = setting(
        "Qwen/Qwen3-0.6B-Base",
        "hub id or folder of the model that learns; 'bundled' for the shipped one",
        min_length=1,
        section="models",
    )
    teacher: str = setting(
        "Qwen/Qwen3-4B",
        "hub id, folder or server (http://host:port) of the model that scores; 'bundled'; 'self': the student's base",
        min_length=1,
        marks="resume",
    )
    teacher_name: str | None = setting(None, "what a served teacher's server calls it", min_length=1)
    teacher_tokenizer: str | None = setting(
        None, "hub id or folder of a served teacher's tokenizer and config; teacher_name if not given", min_length=1
    )
    teacher_concurrency: int = setting(4, "requests to a served teacher at once", ge=1, le=64, marks="sitting")
    teacher_timeout: float = setting(300.0, "most seconds for one of its answers", gt=0, le=1e5, marks="resume sitting")
    teacher_patience: float = setting(
        600.0, "seconds that a run waits for a served teacher that went away", ge=0, le=1e6, marks="resume sitting"
    )
    teacher_bits: Bits = setting(
        4, "teacher weights: 4 is NF4 with double quantisation, 8 is LLM.int8 (CUDA), 16 the compute dtype, 32 float32"
    )
    teacher_offload: bool = setting(
        False,
        "keep the teacher's layers in the host's memory, from where each comes to the card once a step",
        marks="resume",
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
    adapter: str | None = setting(
        None,
        "folder of a LoRA adapter of the student to train on from, such as an SFT's; rank, alpha and modules are then its own",
        min_length=1,
        marks="traced",
    )
    lora_rank: int = setting(32, "rank of the LoRA adapter", ge=1, le=MOST_RANK, marks="traced")
    lora_alpha: float = setting(
        64.0, "LoRA's scale: the update is lora_alpha / lora_rank * B A", gt=0, le=1e6, marks="traced"
    )
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
        "hub id, or a JSON, JSONL or Parquet file of problems (from 50 MB on its prompts are kept in "
        "~/.cache/huggingface/assets/poweropd_lite, which may be deleted); 'bundled' for the synthetic ones",
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
        "--eval-benchmarks are: by --eval-grader, by their answers, or where there are none by the KL to the teacher alone",
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
    template_kwargs: Mapping = setting({}, "more that the chat template is told: a mapping; JSON as a flag")
    teacher_enable_thinking: bool | None = setting(None, "enable_thinking of the teacher's prompts, if another")
    teacher_template_kwargs: Mapping | None = setting(None, "template_kwargs of the teacher's prompts, if others")
    teacher_prompt: str = setting(
        "",
        "the last user message as the teacher reads it, if another: a text with {prompt} and columns of the row, such as {solution}",
    )
    max_prompt_tokens: int = setting(1024, "longer prompts are left out, counted and named", ge=1)

    # The rollouts
    engine: Literal["auto", "vllm", "loop"] = setting(
        "auto",
        "what samples; auto: vLLM where it is installed and runs, the built-in loop elsewhere",
        section="rollouts",
        marks="resume found",
    )
    kernels: Kernels = setting(
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
        le=1e6,
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
    eval_grader: str | None = setting(None, "as grader of the evaluate command", min_length=1, marks="scores")
    eval_problems: int = setting(256, "how many problems of each benchmark, from the first on", ge=1, marks="scores")
    eval_every: int = setting(0, "steps between evaluations; 0: only before and after training", ge=0)
    kl_prompts: int = setting(
        64, "on how many of the held-out prompts the KL to the teacher is estimated at each evaluation; 0: none", ge=0
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
        """The reward's name for a reader, with its settings, such as "power 10", and what of the laboratory is beside it."""
        words = [self.reward + f" {self.alpha:g}" * ("alpha" in reward_of(self.reward).settings)]
        words += [f"{name}={value}" for name, value in self.reward_settings.items()]
        beside = {"baseline": self.baseline, "keep": self.keep, "weight": self.weight}
        return " ".join(words + [f"{name} {value}" for name, value in beside.items() if value not in ("none", "all")])

    @property
    def pair(self) -> str:
        """The two models by their full names, such as "bundled-student <- bundled-teacher"."""
        return f"{called(self, 'student')} <- {called(self, 'teacher')}"

    @property
    def served(self) -> bool:
        """Whether the teacher is another program's, asked by HTTP."""
        return is_address(self.teacher)

    @property
    def loads_teacher(self) -> bool:
        """Whether a second model is loaded: the teacher is neither served nor the student's own base."""
        return not self.served and self.teacher != SELF

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
        if problems := impossible(self):
            raise ValueError("\n".join(problems))
        return self


def as_in_training(name: str) -> Any:
    """A field of another command's settings, with the default and the sentence that a run has."""
    field = Config.model_fields[name]
    return Field(field.default, description=field.description)


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
