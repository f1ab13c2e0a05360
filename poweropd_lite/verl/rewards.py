"""The paper's rewards as losses of verl, by the names that `--reward` takes.

With use_policy_gradient verl takes minus a token's loss as its advantage, so the loss is minus the reward. verl's config has
no field for a reward's settings: POWEROPD_ALPHA, POWEROPD_CLIP_LIMIT and POWEROPD_TAU of the environment are train's settings
of these names, with its defaults.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from verl.trainer.distillation.losses import DistillationLossSettings, register_distillation_loss
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

from poweropd_lite.base.config_files import checked, nearest
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.objective import ObjectiveSettings
from poweropd_lite.base.teachers import KEY
from poweropd_lite.rewards.paper import PAPER

# zscore wants the whole step's moments and full_kl whole distributions: verl gives the sampled tokens of one micro-batch.
REWARDS = {name: reward for name, reward in PAPER.items() if reward.pay is not None and not reward.needs}
PREFIX = "POWEROPD_"


def settings_of(environment: Mapping[str, str]) -> dict[str, float]:
    """Returns each setting of REWARDS, from the environment or by its default; raises UserError for one that can't be."""
    names = {PREFIX + name.upper(): name for reward in REWARDS.values() for name in reward.settings}
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX) and name != KEY}
    if unknown := sorted(given.keys() - names.keys()):
        near = nearest(unknown[0], names, f"; there are {', '.join(names)}")
        raise UserError(f"the environment sets {unknown[0]}, which no reward here reads{near}")
    objective = checked(ObjectiveSettings, {names[name]: value for name, value in given.items()})
    return {name: getattr(objective, name) for name in names.values()}


SETTINGS = settings_of(os.environ)


@register_distillation_loss(DistillationLossSettings(names=[*REWARDS], use_estimator=True))
def token_losses(
    config: Any, distillation_config: Any, model_output: dict[str, Tensor], data: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Returns minus the reward of every token [B, T], without a gradient, 0 in the padding; and what verl logs beside it.

    `model_output["log_probs"]` and `data["teacher_logprobs"]` are verl's, of prompts and completions end to end. Rewards are
    float32 (float64), whatever dtype the log-probs come in. Raises UserError without use_policy_gradient.
    """
    wanted = distillation_config.distillation_loss
    if not wanted.use_policy_gradient:
        raise UserError(
            f"loss_mode {wanted.loss_mode} is a reward, which has no gradient of its own, and use_policy_gradient is False; "
            "type distillation.distillation_loss.use_policy_gradient=True"
        )
    log_q = _wide(no_padding_2_padding(model_output["log_probs"], data))
    log_p = _wide(no_padding_2_padding(data["teacher_logprobs"], data).squeeze(-1))
    reward, mask = REWARDS[wanted.loss_mode], data["response_mask"].bool()
    taken = {name: SETTINGS[name] for name in reward.settings}
    assert reward.pay is not None
    paid = reward.pay(log_p, log_q, **taken)
    mean = paid[mask.to_padded_tensor(False) if mask.is_nested else mask].mean()
    said = {f"distillation/{name}": value for name, value in taken.items()}
    return -paid, said | {"distillation/reward": Metric(AggregationType.MEAN, mean)}


def _wide(log_probs: Tensor) -> Tensor:
    return log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
