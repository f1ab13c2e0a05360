"""Settings of the audit and advise commands: their defaults, limits and a sentence on each."""

from pydantic import BaseModel, ConfigDict, Field

from poweropd_lite.base.config import section


class AuditConfig(BaseModel):
    """One audit of a teacher's precision. Fields are flags of the audit command, beside all of training's. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    rollouts: int = Field(
        256,
        ge=2,
        description="completions of the student that are scored; more of them narrow the intervals",
        json_schema_extra=section("audit"),
    )
    max_flipped_mass: float = Field(0.05, ge=0, le=1, description="share of sum |r| that may change its sign")
    min_correlation: float = Field(0.95, ge=-1, le=1, description="least correlation with the reference's rewards")
    resamples: int = Field(1000, ge=100, description="bootstrap samples, of whole rollouts, behind each 95% interval")
    reference_gib: float | None = Field(
        None,
        ge=0,
        description="memory that the full-precision teacher may take on the device, in GiB; layers that don't fit are "
        "streamed; if not given, what is free",
    )
    out: str | None = Field(None, min_length=1, description="folder of the report; if not given, a new one in audits/")


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
    min_live_share: float = Field(0.01, ge=0, le=1, description="share that must be live under the config's own reward")
    few_live_share: float = Field(0.05, ge=0, le=1, description="a reward with fewer live tokens than this is marked")
    heavy_share: float = Field(0.25, ge=0, le=1, description="a reward whose top 1% carry more gradient is marked")
    out: str | None = Field(None, min_length=1, description="folder of the report; if not given, a new one in advice/")
