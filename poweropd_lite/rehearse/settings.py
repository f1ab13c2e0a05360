"""Settings of the audit and advise commands: their defaults, limits and a sentence on each."""

from pydantic import BaseModel, ConfigDict

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.fields import setting


def refuse_served(config: Config, name: str) -> None:
    """Raises UserError for a served teacher: both commands compare what it does not give."""
    if config.served:
        what = "loads the teacher in every precision" if name == "audit" else "compares the gradients of full_kl too"
        raise UserError(
            f"{name} {what}, and a served teacher gives the log-probs of sampled tokens alone; type --teacher with a hub id or "
            "folder, such as a smaller model of its family"
        )


class AuditConfig(BaseModel):
    """One audit of a teacher's precision. Fields are flags of the audit command, beside all of training's. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    rollouts: int = setting(
        256, "completions of the student that are scored; more of them narrow the intervals", section="audit", ge=2
    )
    max_flipped_mass: float = setting(
        0.05, "sound only if at most this share of the reference's reward mass, sum |r|, changes its sign", ge=0, le=1
    )
    min_correlation: float = setting(
        0.95, "sound only if the rewards correlate at least so well with the reference's", ge=-1, le=1
    )
    resamples: int = setting(1000, "bootstrap samples, of whole rollouts, behind each 95% interval", ge=100)
    reference_gib: float | None = setting(
        None,
        "memory that the full-precision teacher may take on the device, in GiB; layers that don't fit are streamed; if "
        "not given, what is free",
        ge=0,
    )
    output: str | None = setting(None, "folder of the report; if not given, a new one under audits/", min_length=1)


class AdviseConfig(BaseModel):
    """One comparison of rewards. Fields are flags of the advise command, beside all of training's. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    rollouts: int = setting(256, "completions of the student that every reward is replayed on", section="advise", ge=1)
    gradient_steps: int = setting(
        3, "of them, so many batches of --batch-size have their gradients compared, one backward a reward", ge=2
    )
    live_reward: float = setting(0.01, "a token is live if its |reward| is above this", gt=0)
    min_live_share: float = setting(
        0.01, "refused if fewer of the tokens are live under the config's own reward", ge=0, le=1
    )
    few_live_share: float = setting(0.05, "a reward with fewer live tokens than this is marked", ge=0, le=1)
    heavy_share: float = setting(
        0.25, "a reward whose top 1% of tokens carry more of the gradient is marked", ge=0, le=1
    )
    output: str | None = setting(None, "folder of the report; if not given, a new one under advice/", min_length=1)
