"""Settings of the evaluate command: their defaults, limits and a sentence on each."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from poweropd_lite.base.config import as_in_training
from poweropd_lite.base.config_files import checked
from poweropd_lite.base.errors import UserError, cut
from poweropd_lite.base.fields import Bits, Kernels, Mapping, as_literal, function_fault, section

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class EvalConfig(BaseModel):
    """One evaluation. Fields are flags of the evaluate command. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(
        min_length=1,
        description="a run folder, an adapter, a model's folder or hub id; bundled-student or bundled-teacher",
        json_schema_extra=section("model"),
    )
    base: str | None = Field(None, min_length=1, description="an adapter's base model; if not given, the one it names")
    bits: Annotated[Literal[4, 16], BeforeValidator(as_literal)] | None = Field(
        None,
        description="of the weights: 16 is the compute dtype, 4 is NF4; if not given, as the run trained, or 16; of the "
        "models of --problems-of 4 where that run had them in 4",
    )
    dtype: Dtype = Field("auto", description="it computes in; auto: bfloat16 where the card has it, float32 on a CPU")
    engine: Literal["auto", "vllm", "loop"] = Field("auto", description="what samples; auto: vLLM where it runs")
    kernels: Kernels = as_in_training("kernels")
    trust_remote_code: bool = Field(False, description="run Python code of a model; only for sources you trust")
    teacher: str | None = Field(
        None,
        min_length=1,
        description="estimate KL(model | teacher) too, on one completion a problem at temperature 1: a hub id, a folder, an "
        "address, or 'run' for the run's own; if not given, the run's where no problem has an answer",
    )
    teacher_name: str | None = as_in_training("teacher_name")
    teacher_tokenizer: str | None = as_in_training("teacher_tokenizer")
    teacher_bits: Bits | None = Field(None, description="as in training; if not given, as the run trained, or 4")

    benchmarks: str | None = Field(
        None,
        min_length=1,
        description="joined by commas: gsm8k, math500, amc23, aime24, aime25, minerva, olympiadbench, all (these), "
        "bundled, a JSON, JSONL or Parquet file of problems and answers, a hub id (ID:SUBSET:SPLIT); if not given, all "
        "those that the run was scored on, and what it held out; else all with CUDA, bundled without",
        json_schema_extra=section("benchmarks"),
    )
    problems_of: str | None = Field(
        None,
        min_length=1,
        description="a run folder: this model is asked what that run was scored on, its held-out prompts too, as the run "
        "was; such as its teacher, or its student before training",
    )
    benchmark_folder: str | None = Field(None, description="of copies, such as math500.jsonl, read instead of the hub")
    problems: int | None = Field(
        None,
        ge=1,
        description="how many of each, from the first on; if not given, all, or of a run's own files what it was scored on",
    )
    prompt_column: str | None = Field(None, description="if not given, as train finds it (docs/your_task.md)")
    answer_column: str | None = Field(None, description="if not given, as train finds it")
    prompt_suffix: str | None = Field(
        None, description="added to the problem; if not given, as the run trained, or none"
    )
    system_prompt: str | None = Field(None, description="system message; if not given, as the run trained, or none")
    enable_thinking: bool | None = Field(
        None, description="of the chat template; if not given, as the run trained, or off"
    )
    template_kwargs: Mapping | None = Field(
        None, description="more that the chat template is told, in JSON; if not given, as the run trained, or nothing"
    )
    max_prompt_tokens: int = Field(2048, ge=1, description="longer problems are left out, counted and named")

    n: int = Field(8, ge=1, description="samples a problem", json_schema_extra=section("sampling"))
    k: str | None = Field(None, description="Pass@k too, joined by commas; if not given, powers of two below n")
    temperature: float = Field(0.6, gt=0, description="sampling temperature")
    top_k: int = Field(0, ge=0, description="sample among the k likeliest ids; 0: among all; 1: greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the fewest ids that hold this mass; 1: among all")
    max_new_tokens: int | None = Field(
        None, ge=1, description="longest answer; if not given, 4,096 (bundled: 112), or of a run's own files the run's"
    )
    batch_size: int | None = Field(None, ge=1, description="answers at once; else at most 512 (vLLM) or 256")
    seed: int | None = Field(None, ge=0, lt=2**32, description="fixes the sampling; if not given, the run's own, or 0")
    grader: str | None = Field(
        None,
        min_length=1,
        description="score by a function of yours instead of the maths grader, module:function(completion, row) -> float, "
        "of the current folder or installed (docs/your_task.md); if not given, of a run's own problems the run's",
    )
    official_grading: bool = Field(
        False, description="score by the released code's grading as well, in its own columns"
    )

    output: str | None = Field(
        None,
        min_length=1,
        description="folder of samples and results; if not given, eval/ in a run folder, else in evaluations/",
        json_schema_extra=section("output"),
    )
    threads: int | None = Field(
        None, ge=0, le=1024, description="0: torch's choice; if not given, 1 for the bundled pair"
    )

    @property
    def ks(self) -> list[int]:
        """The k of the Pass@k scored beside Pass@n, ascending; raises UserError for text that is no list of them."""
        if self.k is None:
            return [2**i for i in range(20) if 2**i < self.n]
        words = [word.strip() for word in self.k.split(",") if word.strip()]
        if not words or not all(re.fullmatch("0*[1-9][0-9]{0,9}", word) for word in words):
            raise UserError(
                f"k: found {cut(repr(self.k))}, but it should be whole numbers joined by commas, such as 1,4"
            )
        if (k := max(map(int, words))) > self.n:
            raise UserError(f"Pass@{k} needs {k} samples a problem, and n is {self.n}; type --n {k} or a smaller --k")
        return sorted({int(word) for word in words})


def load_eval_config(**settings: Any) -> EvalConfig:
    """Returns the EvalConfig of `settings`; raises UserError as load_config does."""
    if settings.get("model") is None and not set(settings) - set(EvalConfig.model_fields):
        kinds = "a run folder, an adapter, a model or a hub id, or --model bundled-student"
        raise UserError(f"no model to evaluate; type --model with {kinds}")
    texts = {key: ",".join(map(str, v)) for key, v in settings.items() if isinstance(v, list | tuple)}
    texts |= {key: str(v) for key, v in settings.items() if isinstance(v, Path) or (key == "k" and isinstance(v, int))}
    config = checked(EvalConfig, settings | texts)
    _ = config.ks
    if fault := function_fault(config.grader):
        raise UserError(f"grader: {fault}")
    if config.problems_of and config.benchmarks:
        raise UserError("--problems-of and --benchmarks both say which problems; leave one out")
    if config.grader and config.official_grading:
        raise UserError("--official-grading is of maths, and --grader scores in its place; leave one out")
    return config
