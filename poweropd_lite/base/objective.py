"""The settings of what a student learns from its rollouts: the reward, and the laboratory's axes (docs/lab.md)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel

from poweropd_lite.base.config_files import nearest
from poweropd_lite.base.fields import Mapping, function_fault, setting
from poweropd_lite.rewards.table import REWARDS, reward_of


def _known(name: str) -> str:
    if name not in REWARDS and (":" not in name or function_fault(name)):
        near = nearest(name, REWARDS, f"; there are {', '.join(REWARDS)}, and a function of your own: module:function")
        raise ValueError(function_fault(name) if ":" in name else f"no reward named '{name}'{near}")
    return name


class ObjectiveSettings(BaseModel):
    """The first settings of a run."""

    reward: Annotated[str, AfterValidator(_known)] = setting(
        "power",
        f"what a sampled token is paid: one of {', '.join(REWARDS)} (docs/method.md, docs/lab.md), or a function of your own, "
        "module:function",
        section="method",
        marks="grid",
    )
    alpha: float = setting(
        10.0, "exponent of the power reward p^alpha - q^alpha; other rewards ignore it", gt=0, le=1e6, marks="grid"
    )
    clip_limit: float = setting(
        1.0, "the clip reward's bound on the log ratio (paper: 1; released script: 5)", gt=0, le=1e6
    )
    tau: float = setting(5.0, "the tanh reward's scale: tanh(log ratio / tau)", gt=0, le=1e6)
    reward_settings: Mapping = setting(
        {},
        "arguments of a reward of docs/lab.md, or of your own, whose defaults stand there: a mapping; JSON as a flag",
    )
    baseline: Literal["none", "own"] = setting(
        "none",
        "what is taken off a token's reward; own: its mean over the vocabulary under the student, for which both models' whole "
        "distributions are read",
        marks="grid traced",
    )
    keep: Literal["all", "dial", "entropy", "abs", "random"] = setting(
        "all",
        "which of a step's tokens stay in the loss: all, or the keep_share of them that is highest by abs(log ratio) and "
        "abs(p - q) together, by the student's entropy, by abs(log ratio), or by chance",
        marks="grid",
    )
    keep_share: float = setting(0.4, "the share of tokens that keep lets stay", gt=0, le=1)
    keep_over: Literal["step", "completion"] = setting(
        "step", "of whose tokens keep takes that share: of the whole step's, or of each completion's (DIAL-OPD)"
    )
    dial_balance: float = setting(
        1.0, "dial's b: tokens are ranked by abs(log ratio)^(1 - b) abs(p - q)^b (DIAL-OPD: 1 and 1.2)", ge=0, le=4
    )
    weight: Literal["none", "remaining", "horizon"] = setting(
        "none",
        "how much a token counts: alike, by how much of its completion's abs(log ratio) is still to come, or as 1 up to horizon "
        "and 0 after",
        marks="grid",
    )
    weight_gain: float = setting(0.5, "remaining's g: 1 + g (1 - what came before / all of it)", gt=0, le=1e3)
    horizon: int = setting(256, "how many tokens of a completion count under weight horizon", ge=1)
    score: Literal["sampled", "full"] = setting(
        "sampled",
        "whose log-prob carries the gradient: the distribution sampled from (unbiased under top-k, top-p, temperature), or the untruncated one (released code)",
        marks="grid traced",
    )
    stop_mode: Literal["mask", "raw", "relabel", "cross_eos"] = setting(
        "mask",
        "the final stop token in the loss: left out, kept, relabelled as the teacher's stop for both, or as the teacher's stop for the teacher alone",
    )

    @property
    def ignored(self) -> frozenset[str]:
        """The settings that this reward, keep and weight do not read."""
        reads = {*reward_of(self.reward).settings, *(("dial_balance",) if self.keep == "dial" else ())}
        reads |= {"none": set(), "remaining": {"weight_gain"}, "horizon": {"horizon"}}[self.weight]
        reads |= set() if self.keep == "all" else {"keep_share", "keep_over"}
        return _OF_SOME - reads


_OF_SOME = frozenset(
    {name for reward in REWARDS.values() for name in reward.settings}
    | {"keep_share", "keep_over", "dial_balance", "weight_gain", "horizon"}
)
