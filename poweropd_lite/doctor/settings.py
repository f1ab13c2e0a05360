"""Settings of the doctor command: their defaults, limits and a sentence on each."""

from pydantic import BaseModel, ConfigDict, Field

from poweropd_lite.base.fields import section


class DoctorConfig(BaseModel):
    """One examination: what of it is not the run's own. Fields are flags of the doctor command. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    rows: int = Field(
        1000,
        ge=1,
        description="how many usable prompts, and worked answers, of the data are read, from the first on",
        json_schema_extra=section("doctor"),
    )
    gpu: str | None = Field(
        None,
        min_length=1,
        description="the card that the run is for, as --gpu of plan, though it is not here; if not given, this machine",
    )
