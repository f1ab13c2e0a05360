"""Settings of the report command: their defaults, limits and a sentence on each."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from poweropd_lite.base.fields import section


class ReportConfig(BaseModel):
    """One report. Fields are flags of the report command, beside the run folders. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    teacher: str | None = Field(
        None,
        min_length=1,
        description="the folder of the teacher's evaluation, or its accuracy in percent, to be drawn as a line",
        json_schema_extra=section("report"),
    )
    base: str | None = Field(
        None,
        min_length=1,
        description="as --teacher, of the student before training, for its line; if not given, what the runs' own evaluations say",
    )
    baseline: str | None = Field(
        None,
        min_length=1,
        description="the run, or the curve by its label, that differences are taken from; if not given, the first run's",
    )
    labels: str | None = Field(
        None,
        min_length=1,
        description="names of the curves, joined by commas, in the order of the page; if not given, what differs",
    )
    style: Literal["screen", "paper"] = Field(
        "screen",
        description="how the pictures look; paper: one or two columns wide (3.35 or 6.9 in), 8 pt, no titles",
    )
    output: str | None = Field(
        None,
        min_length=1,
        description="the report's folder; if not given, report/ in the run's, or of several runs a name under reports/",
    )
