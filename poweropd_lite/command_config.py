"""Settings of the commands beside training: their defaults, limits and a sentence on each, as config.py has for a run."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from poweropd_lite.config import number_of, section
from poweropd_lite.config_files import checked
from poweropd_lite.errors import UserError


class EvalConfig(BaseModel):
    """One evaluation. Fields are flags of the evaluate command. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(
        min_length=1,
        description="a run folder, an adapter, a model's folder or hub id; bundled-student or bundled-teacher for the shipped ones",
        json_schema_extra=section("model"),
    )
    base: str | None = Field(
        None, min_length=1, description="the base model of an adapter; if not given, the one it names"
    )
    bits: Annotated[Literal[4, 16], BeforeValidator(number_of)] | None = Field(
        None,
        description="weights of the model: 16 is the compute dtype, 4 is NF4; if not given, as the run trained, or 16",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="compute dtype; auto: bfloat16 where the card has it, float32 on a CPU"
    )
    engine: Literal["auto", "vllm", "loop"] = Field(
        "auto", description="what samples; auto: vLLM where it is installed and runs, the built-in loop elsewhere"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with a model; only for sources you trust"
    )

    benchmarks: str | None = Field(
        None,
        min_length=1,
        description="joined by commas: gsm8k, math500, amc23, aime24, aime25, minerva, olympiadbench, all (these seven), bundled, a JSON, JSONL or Parquet file of problems and answers, a hub id (ID:SUBSET:SPLIT); if not given, all with CUDA, bundled without",
        json_schema_extra=section("benchmarks"),
    )
    benchmark_folder: str | None = Field(
        None, description="folder with copies of the benchmarks, such as math500.jsonl, to be read instead of the hub"
    )
    problems: int | None = Field(
        None, ge=1, description="how many problems of each, from the first on; all of them if not given"
    )
    prompt_column: str | None = Field(
        None, description="column with the problem, in a file or hub id; if not given: problem, question or prompt"
    )
    answer_column: str | None = Field(
        None, description="column with the answer; if not given: answer, final_answer or solution"
    )
    prompt_suffix: str | None = Field(
        None, description="text added to the problem as it stands; if not given, as the run trained, or none"
    )
    system_prompt: str | None = Field(None, description="system message; if not given, as the run trained, or none")
    enable_thinking: bool | None = Field(
        None, description="what the chat template is told; if not given, as the run trained, or off"
    )
    max_prompt_tokens: int = Field(2048, ge=1, description="longer problems are left out, counted and named")

    n: int = Field(8, ge=1, description="samples a problem", json_schema_extra=section("sampling"))
    k: str | None = Field(
        None,
        description="also score the unbiased Pass@k for these, joined by commas; if not given, powers of two below n",
    )
    temperature: float = Field(0.6, gt=0, description="sampling temperature")
    top_k: int = Field(0, ge=0, description="sample among the k likeliest ids; 0: among all; 1: greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the fewest ids that hold this mass; 1: among all")
    max_new_tokens: int | None = Field(
        None, ge=1, description="longest answer in tokens; if not given, 4,096, and for the bundled problems 112"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="answers generated at once; if not given, 512 for vLLM, and for the built-in loop 64 (CUDA) or 256",
    )
    seed: int | None = Field(None, ge=0, lt=2**32, description="fixes the sampling; if not given, the run's own, or 0")
    official_grading: bool = Field(
        False, description="score by the released code's grading as well, in columns of its own"
    )

    output: str | None = Field(
        None,
        min_length=1,
        description="folder of samples and results; if not given, eval/ in a run folder, else a new name under evaluations/",
        json_schema_extra=section("output"),
    )
    threads: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="CPU threads of torch; 0 leaves torch's own choice; if not given, 1 for the bundled pair",
    )

    @property
    def ks(self) -> list[int]:
        """The k of the Pass@k scored beside Pass@n, ascending; raises UserError for text that is no list of them."""
        if self.k is None:
            return [2**i for i in range(20) if 2**i < self.n]
        words = [word.strip() for word in self.k.split(",") if word.strip()]
        if not words or not all(word.isascii() and word.isdigit() and int(word) for word in words):
            raise UserError(f"k: found {self.k!r}, but it should be whole numbers joined by commas, such as 1,4")
        if (k := max(map(int, words))) > self.n:
            raise UserError(f"Pass@{k} needs {k} samples a problem, and n is {self.n}; type --n {k} or a smaller --k")
        return sorted({int(word) for word in words})


def load_eval_config(**settings: Any) -> EvalConfig:
    """Returns the EvalConfig of `settings`; raises UserError as load_config does."""
    if settings.get("model") is None and not set(settings) - set(EvalConfig.model_fields):
        raise UserError(
            "no model to evaluate; type --model with a run folder, an adapter, a model or a hub id, or --model bundled-student"
        )
    texts = {key: ",".join(map(str, v)) for key, v in settings.items() if isinstance(v, list | tuple)}
    texts |= {key: str(v) for key, v in settings.items() if isinstance(v, Path) or (key == "k" and isinstance(v, int))}
    config = checked(EvalConfig, settings | texts)
    _ = config.ks
    return config


FORMATS = ("adapter", "merged-16bit", "merged-4bit", "gguf")
OWN_GGUF = ("f32", "f16", "bf16", "q8_0")  # written here; any other kind is made by llama.cpp's own tools


class ExportConfig(BaseModel):
    """One export. Fields are flags of the export command. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(
        min_length=1,
        description="a run folder, a PEFT adapter or a model (folder or hub id); may be typed without the flag",
        json_schema_extra=section("what"),
    )
    to: Literal["adapter", "merged-16bit", "merged-4bit", "gguf"] = Field(
        description="adapter: PEFT's format; merged-16bit: one model in safetensors; merged-4bit: the same in NF4; gguf: one file for llama.cpp and Ollama",
    )
    base: str | None = Field(
        None, min_length=1, description="the base model of an adapter; if not given, the one it names"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="weights of merged-16bit; auto: as the base has them, bfloat16 if that is float32"
    )
    gguf_type: str = Field(
        "q8_0",
        min_length=1,
        description="weights of gguf: f32, f16, bf16, q8_0, or with --llama-cpp any kind that its quantiser knows, such as q4_k_m",
    )
    llama_cpp: str | None = Field(
        None,
        min_length=1,
        description="folder of a llama.cpp checkout, whose quantiser and, for models not known here, converter are used",
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with a model; only for sources you trust"
    )

    out: str | None = Field(
        None,
        min_length=1,
        description="folder to write; if not given, export/ in a run folder, else a new name under exports/",
        json_schema_extra=section("where"),
    )
    overwrite: bool = Field(False, description="replace an earlier export in that folder, once the new one is proven")
    push: str | None = Field(
        None,
        min_length=1,
        description="also upload it to the hub as ORG/NAME; the token is read from the environment (HF_TOKEN)",
    )
    private: bool = Field(True, description="whether a repository that --push makes is private")

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = []
        if self.to != "merged-16bit" and self.dtype != "auto":
            problems.append(f"dtype {self.dtype} is of merged-16bit, and --to is {self.to}; leave out --dtype")
        fields = self.model_fields_set
        if self.to != "gguf" and {"gguf_type", "llama_cpp"} & fields:
            problems.append(f"--gguf-type and --llama-cpp are of gguf, and --to is {self.to}; leave them out")
        if self.to == "gguf" and self.gguf_type.lower() not in OWN_GGUF and self.llama_cpp is None:
            problems.append(
                f"gguf_type {self.gguf_type} is none of {', '.join(OWN_GGUF)}, which are written here; others, such as q4_k_m, are made by llama.cpp's "
                "own quantiser: type --llama-cpp with the folder of a built llama.cpp checkout"
            )
        if self.push is not None and not _HUB_NAME.fullmatch(self.push):
            problems.append(f"push: found {self.push!r}, but it should be ORG/NAME, such as me/qwen3-0.6b-power10")
        if "private" in fields and self.push is None:
            problems.append("private is of an upload; type --push ORG/NAME, or leave it out")
        if problems:
            raise ValueError("\n".join(problems))
        return self


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")


def load_export_config(**settings: Any) -> ExportConfig:
    """Returns the ExportConfig of `settings`; raises UserError as load_config does."""
    if not set(settings) - set(ExportConfig.model_fields):
        if settings.get("model") is None:
            raise UserError(
                "nothing to export; type a run folder or an adapter: python -m poweropd_lite.export runs/power10-seed0 --to adapter"
            )
        if settings.get("to") is None:
            raise UserError(f"no format to export to; type --to with one of {', '.join(FORMATS)}")
    return checked(ExportConfig, {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()})


class DoctorConfig(BaseModel):
    """One examination: what of it is not the run's own. Fields are flags of the doctor command. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    rows: int = Field(
        1000,
        ge=1,
        description="how many usable prompts, and worked answers, of the data are read, from the first on",
        json_schema_extra=section("doctor"),
    )


class PlanConfig(BaseModel):
    """One plan: what of it is not the run's own. Fields are flags of the plan command. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    gpu: str | None = Field(
        None,
        min_length=1,
        description="the card: its memory in GB, such as 24, or a name, such as rtx4090 (with a time estimate), or cpu; if not given, the card of this machine",
        json_schema_extra=section("plan"),
    )
    prompt_tokens: int = Field(
        128, ge=1, description="a usual prompt, for FLOPs and time; memory is planned for --max-prompt-tokens"
    )
    completion_tokens: int | None = Field(
        None, ge=1, description="a usual completion, for FLOPs and time; if not given, --max-new-tokens"
    )
    compute_share: float = Field(
        0.4, gt=0, le=1, description="share of a card's published bfloat16 rate that products are assumed to reach"
    )
    bandwidth_share: float = Field(
        0.6, gt=0, le=1, description="share of a card's published memory bandwidth that is assumed to be reached"
    )


class AuditConfig(BaseModel):
    """One audit of a teacher's precision. Fields are flags of the audit command, beside all of training's. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    rollouts: int = Field(
        256,
        ge=2,
        description="completions of the student that are scored; more of them narrow the intervals",
        json_schema_extra=section("audit"),
    )
    max_flipped_mass: float = Field(
        0.05,
        ge=0,
        le=1,
        description="sound only if at most this share of the reference's reward mass, sum of |r|, changes its sign",
    )
    min_correlation: float = Field(
        0.95, ge=-1, le=1, description="sound only if the rewards correlate at least so well with the reference's"
    )
    resamples: int = Field(1000, ge=100, description="bootstrap samples, of whole rollouts, behind each 95% interval")
    reference_gib: float | None = Field(
        None,
        ge=0,
        description="memory that the full-precision teacher may take on the device, in GiB; layers that don't fit are streamed; if not given, what is free",
    )
    out: str | None = Field(
        None,
        min_length=1,
        description="folder of the report; if not given, a new one under audits/",
    )


class ReportConfig(BaseModel):
    """One report. Fields are flags of the report command, beside the run folders. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    teacher: str | None = Field(
        None,
        min_length=1,
        description="the folder of the teacher's evaluation, or its accuracy in percent, to be drawn as a line",
        json_schema_extra=section("report"),
    )
    baseline: str | None = Field(
        None, min_length=1, description="the run that differences are taken from; if not given, the first"
    )
    out: str | None = Field(
        None,
        min_length=1,
        description="folder of the report; if not given, report/ in the run's folder, or a name under reports/ for several runs",
    )


class AdviseConfig(BaseModel):
    """One comparison of rewards. Fields are flags of the advise command, beside all of training's. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    rollouts: int = Field(
        256,
        ge=1,
        description="completions of the student that every reward is replayed on",
        json_schema_extra=section("advise"),
    )
    gradient_steps: int = Field(
        3,
        ge=2,
        description="of them, so many batches of --batch-size have their gradients compared, one backward a reward",
    )
    live_reward: float = Field(0.01, gt=0, description="a token is live if its |reward| is above this")
    min_live_share: float = Field(
        0.01, ge=0, le=1, description="refused if fewer of the tokens are live under the config's own reward"
    )
    few_live_share: float = Field(
        0.05, ge=0, le=1, description="a reward with fewer live tokens than this is called sparse"
    )
    heavy_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="a reward whose top 1% of tokens carry more of the gradient is called carried by a few",
    )
    out: str | None = Field(
        None,
        min_length=1,
        description="folder of the report; if not given, a new one under advice/",
    )
