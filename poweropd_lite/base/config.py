"""Every setting of a run: its default, its limits and one sentence on it. This file is the only home of training's defaults
(those of the commands beside it: command_config.py).

`load_config` reads a YAML file (one of configs/ by name, or a path), then flags or keyword arguments on top; an unknown
key or an impossible combination is refused here, before torch is imported and before any model loads. The defaults are
the paper's recipe for Qwen3-0.6B-Base <- Qwen3-4B as LoRA on one 24 GB card.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from poweropd_lite.base.config_files import checked, config_path, read_yaml

BUNDLED = "bundled"  # as a model or data name: what is shipped inside the package


def number_of(value: Any) -> Any:
    """A flag comes as text, which pydantic compares with a literal number as it stands."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


Bits = Annotated[Literal[4, 8, 16, 32], BeforeValidator(number_of)]


def section(title: str, *marks: str) -> dict[str, Any]:
    """Puts a flag and those after it under a heading of --help; for `marks` see `marked`."""
    return {"section": title, **mark(*marks)}


def mark(*marks: str) -> dict[str, Any]:
    """Says of a field what `marked` lists."""
    return {"marks": marks}


def marked(*marks: str) -> frozenset[str]:
    """Returns the settings of a run that bear one of these marks:

    - "resume": --resume takes it as a flag;
    - "sitting": it may differ between the sittings of one run, and changes no number;
    - "found": a run writes down what it found in place of what was asked;
    - "grid": reproduce sets it a run at a time;
    - "scores": accuracies are comparable only where it is the same;
    - "untraced": the memory of a micro-batch of given size does not depend on it.
    """
    extras: dict[str, Any] = {name: field.json_schema_extra or {} for name, field in Config.model_fields.items()}
    return frozenset(name for name, extra in extras.items() if set(marks) & set(extra.get("marks", ())))


class Config(BaseModel):
    """One run. Fields are flags too: `top_k` is `--top-k`. Frozen: a changed setting is a new Config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    # The method
    reward: Literal["power", "log_ratio", "clip", "tanh", "zscore", "full_kl"] = Field(
        "power",
        description="what a sampled token is paid (docs/method.md); full_kl is the full-vocabulary baseline",
        json_schema_extra=section("method", "grid"),
    )
    alpha: float = Field(
        10.0,
        gt=0,
        le=1e6,
        description="exponent of the power reward p^alpha - q^alpha; other rewards ignore it",
        json_schema_extra=mark("grid", "untraced"),
    )
    clip_limit: float = Field(
        1.0, gt=0, description="the clip reward's bound on the log ratio (paper: 1; released script: 5)"
    )
    tau: float = Field(5.0, gt=0, description="the tanh reward's scale: tanh(log ratio / tau)")
    score: Literal["sampled", "full"] = Field(
        "sampled",
        description="whose log-prob carries the gradient: the distribution sampled from (unbiased under top-k, top-p, temperature), or the untruncated one (released code)",
        json_schema_extra=mark("grid"),
    )
    stop_mode: Literal["mask", "raw", "relabel", "cross_eos"] = Field(
        "mask",
        description="the final stop token in the loss: left out, kept, relabelled as the teacher's stop for both, or as the teacher's stop for the teacher alone",
    )

    # The models
    student: str = Field(
        "Qwen/Qwen3-0.6B-Base",
        min_length=1,
        description="hub id or folder of the model that learns; 'bundled' for the shipped one",
        json_schema_extra=section("models"),
    )
    teacher: str = Field(
        "Qwen/Qwen3-4B",
        min_length=1,
        description="hub id or folder of the model that scores; 'bundled' for the shipped one",
    )
    teacher_bits: Bits = Field(
        4,
        description="teacher weights: 4 is NF4 with double quantisation, 8 is LLM.int8 (CUDA), 16 the compute dtype, 32 float32",
        json_schema_extra=mark("untraced"),
    )
    student_bits: Annotated[Literal[4, 16], BeforeValidator(number_of)] = Field(
        16, description="weights of the student's frozen base: 16 is the compute dtype, 4 is NF4 (QLoRA)"
    )
    loader: Literal["auto", "unsloth", "peft"] = Field(
        "auto",
        description="what loads the student; auto: Unsloth where it is installed and runs, PEFT elsewhere (same adapter, same names)",
        json_schema_extra=mark("resume", "found"),
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="compute dtype; auto: bfloat16 where the card has it, float16 with a loss scale on other cards (untested with Qwen3), float32 on a CPU",
    )
    full_finetune: bool = Field(
        False, description="train every weight (float32 master weights) instead of a LoRA adapter"
    )
    lora_rank: int = Field(32, ge=1, description="rank of the LoRA adapter")
    lora_alpha: float = Field(64.0, gt=0, description="LoRA's scale: the update is lora_alpha / lora_rank * B A")
    lora_targets: str = Field(
        "all-linear",
        min_length=1,
        description="modules that get an adapter: all-linear (all but the head), or names joined by commas",
    )
    modules_to_save: str = Field(
        "", description="modules trained whole beside the adapter, joined by commas, such as embed_tokens,lm_head"
    )
    gradient_checkpointing: bool = Field(
        True, description="recompute activations in the backward pass: less memory, about a third more time"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with a model; only for sources you trust"
    )

    # The prompts
    data: str = Field(
        "agentica-org/DeepScaleR-Preview-Dataset",
        min_length=1,
        description="hub id, or a JSON, JSONL or Parquet file of problems; 'bundled' for the synthetic ones",
        json_schema_extra=section("prompts"),
    )
    data_subset: str | None = Field(
        None, description="configuration name of a hub data set, such as main for openai/gsm8k"
    )
    data_split: str = Field("train", description="split of a hub data set")
    prompt_column: str = Field(
        "problem", description="column with the prompt: a text, or a list of {role, content} messages"
    )
    answer_column: str = Field("answer", description="column with the reference answer; only evaluation needs it")
    prompt_suffix: str = Field(
        "", description="text added to the last user message as it stands; begin it with the space or newline it needs"
    )
    system_prompt: str = Field("", description="system message put before every prompt; none when empty")
    enable_thinking: bool = Field(
        False,
        description="what the chat template is told; off makes Qwen3 add an empty think block, as the released code does",
    )
    max_prompt_tokens: int = Field(
        1024, ge=1, description="longer prompts are left out, counted and named", json_schema_extra=mark("untraced")
    )

    # The rollouts
    engine: Literal["auto", "vllm", "loop"] = Field(
        "auto",
        description="what samples; auto: vLLM where it is installed and runs, the built-in loop elsewhere",
        json_schema_extra=section("rollouts", "resume", "found"),
    )
    guard_every: int = Field(
        50,
        ge=1,
        description="steps between full checks that the engine samples from the weights that are trained; its log-probs are compared at every step",
        json_schema_extra=mark("sitting"),
    )
    importance_cap: float | None = Field(
        None,
        ge=1,
        description="if given, a token's reward is multiplied by min(q of the trainer / q of the engine, this), for engines that round differently",
    )
    batch_size: int = Field(
        32, ge=1, description="prompts a step, one rollout each", json_schema_extra=mark("untraced")
    )
    decode_batch_size: int | None = Field(
        None,
        ge=1,
        description="most completions decoded at once: the dial for keys and values; a whole batch if not given",
        json_schema_extra=mark("untraced"),
    )
    max_new_tokens: int = Field(
        1024,
        ge=1,
        description="longest completion; one that reaches it is truncated and stays in the loss whole",
        json_schema_extra=mark("untraced"),
    )
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the rollouts")
    top_k: int = Field(
        0,
        ge=0,
        description="sample among the k likeliest ids; 0: among all (released code: 20)",
        json_schema_extra=mark("grid"),
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="sample among the fewest ids that hold this mass; 1: among all (released code: 0.95)",
        json_schema_extra=mark("grid"),
    )

    # The optimizer
    steps: int = Field(
        1500, ge=1, description="optimizer steps of the run", json_schema_extra=section("optimizer", "resume")
    )
    lr: float | None = Field(
        None,
        gt=0,
        description="learning rate; if not given, 5e-7 for full fine-tuning (the paper's) and 5e-6 for LoRA, which wants about ten times as much",
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate after the warm-up: held, or falling to zero just after the last step"
    )
    warmup_steps: int = Field(
        0, ge=0, description="steps over which the learning rate rises linearly, under every schedule"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="the gradient is scaled down to this norm if it is larger")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw",
        description="AdamW without weight decay; adamw8bit keeps its state in 8 bits (CUDA)",
        json_schema_extra=mark("untraced"),
    )
    token_budget: int = Field(
        8192,
        ge=1,
        description="tokens (padding counted) of one micro-batch, for student and teacher: the dial for activation memory",
        json_schema_extra=mark("resume", "untraced"),
    )

    # Evaluation
    eval_benchmarks: str | None = Field(
        None,
        min_length=1,
        description="what the student is scored on, as --benchmarks of the evaluate command; none: on nothing",
        json_schema_extra=section("evaluation", "scores", "untraced"),
    )
    eval_prompt_column: str | None = Field(
        None, description="as prompt_column of the evaluate command", json_schema_extra=mark("scores")
    )
    eval_answer_column: str | None = Field(
        None, description="as answer_column of the evaluate command", json_schema_extra=mark("scores")
    )
    eval_problems: int = Field(
        256,
        ge=1,
        description="how many problems of each benchmark, from the first on",
        json_schema_extra=mark("scores"),
    )
    eval_every: int = Field(
        0,
        ge=0,
        description="steps between evaluations; 0: only before and after training",
        json_schema_extra=mark("untraced"),
    )
    eval_samples: int = Field(8, ge=1, description="completions a problem, for Avg@k", json_schema_extra=mark("scores"))
    eval_temperature: float = Field(
        0.6, gt=0, description="sampling temperature of evaluation, untruncated", json_schema_extra=mark("scores")
    )
    eval_max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="longest completion in evaluation; max_new_tokens if not given",
        json_schema_extra=mark("scores", "untraced"),
    )
    eval_batch_size: int = Field(
        32, ge=1, description="completions generated at once in evaluation", json_schema_extra=mark("untraced")
    )

    # The run
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="fixes data order, adapter initialisation and sampling",
        json_schema_extra=section("run", "grid"),
    )
    output: str | None = Field(
        None,
        min_length=1,
        description="run folder; if not given, a new one under runs/",
        json_schema_extra=mark("sitting", "found", "grid"),
    )
    save_every: int = Field(
        50,
        ge=1,
        description="steps between checkpoints; one is always made at the end and on Ctrl-C",
        json_schema_extra=mark("sitting"),
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="how many of the latest checkpoints stay on disk", json_schema_extra=mark("sitting")
    )
    sample_every: int = Field(
        10,
        ge=1,
        description="steps between completions written to samples.jsonl, beside the first",
        json_schema_extra=mark("sitting"),
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of torch; 0 leaves torch's own choice")
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none",
        description="also log there, through accelerate; metrics.jsonl is always written",
        json_schema_extra=mark("sitting"),
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
    def longest_rollout(self) -> int:
        """The most tokens that a prompt and its completion may have, in training and evaluation."""
        longest = max(self.max_new_tokens, (self.eval_max_new_tokens or 0) if self.eval_benchmarks else 0)
        return self.max_prompt_tokens + longest

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = []
        if self.score == "sampled" and self.stop_mode == "relabel" and self.reward != "full_kl":
            problems.append(
                "stop_mode relabel scores a token that was not sampled, which score sampled can't do; "
                "type --score full, or --stop-mode cross_eos"
            )
        if self.token_budget < self.max_prompt_tokens + self.max_new_tokens:
            longest = self.max_prompt_tokens + self.max_new_tokens
            problems.append(
                f"token_budget {self.token_budget} is less than one longest rollout ({self.max_prompt_tokens} prompt + "
                f"{self.max_new_tokens} new tokens); type --token-budget {longest}, or lower --max-prompt-tokens"
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
        if self.eval_every and self.eval_benchmarks is None:
            problems.append(
                "eval_every needs problems to score; type --eval-benchmarks math500 (or a file), or add --eval-every 0"
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
    where = (
        f" in {config}" if config is not None and not set(values) - set(Config.model_fields) <= set(overrides) else ""
    )
    return checked(Config, values, where)


def names_models(values: dict[str, Any], flags: dict[str, Any]) -> bool:
    """Whether a file's values or both flags name the models; then they are taken on top of the defaults alone."""
    return bool({"student", "teacher"} & set(values)) or {"student", "teacher"} <= set(flags)


def config_to_check(config: str | Path | None, flags: dict[str, Any]) -> Config:
    """Returns the run that doctor, plan, audit or advise is asked about: the bundled pair's where no models are named."""
    values = {} if config is None else read_yaml(config_path(config))
    if names_models(values, flags):
        return load_config(config, **flags)
    return load_config(BUNDLED, **{**values, **flags})
