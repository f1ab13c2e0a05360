"""Settings of the plan command: their defaults, limits and a sentence on each."""

from pydantic import BaseModel, ConfigDict, Field

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.fields import section


class CannotPlan(UserError):
    """A model can't be traced on tensors without memory; that is no reason not to train it."""


class PlanConfig(BaseModel):
    """One plan: what of it is not the run's own. Fields are flags of the plan command. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    gpu: str | None = Field(
        None,
        min_length=1,
        description="the card: its memory in GB, such as 24, or a name, such as rtx4090 (with a time estimate), or "
        "cpu; if not given, the card of this machine, or without one any card for the paper's models and this CPU for others",
        json_schema_extra=section("plan"),
    )
    gpus: int = Field(
        1, ge=1, description="equal cards of one machine that share a step's prompts: the plan is that of each of them"
    )
    output: str | None = Field(None, min_length=1, description="file to write a config into that fits")
    prompt_tokens: int = Field(
        128, ge=1, description="a usual prompt, for FLOPs and time; memory is planned for --max-prompt-tokens"
    )
    completion_tokens: int | None = Field(
        None, ge=1, description="a usual completion, for FLOPs and time; if not given, --max-new-tokens"
    )
    compute_share: float = Field(
        0.7, gt=0, le=1, description="share of a card's published bfloat16 rate that products are assumed to reach"
    )
    bandwidth_share: float = Field(
        0.6, gt=0, le=1, description="share of a card's published memory bandwidth that is assumed to be reached"
    )
