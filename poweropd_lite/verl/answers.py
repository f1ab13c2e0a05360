"""What verl calls to score a completion: this package's grader. The score is logged; use_task_rewards decides if it is learnt."""

from typing import Any

from poweropd_lite.grade.grader import is_correct


def accuracy(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """Returns 1.0 where the completion's final answer is `ground_truth`, else 0.0; verl's `reward.custom_reward_function`.

    Of a `data_source` that names GSM8K it need not be boxed, as in evaluate.
    """
    return float(is_correct(solution_str, ground_truth, "gsm8k" if "gsm8k" in data_source.lower() else None))
