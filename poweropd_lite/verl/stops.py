"""An agent loop of verl whose final stop token is left out of the loss and of its N: stop mode `mask` (docs/method.md)."""

from functools import cache
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import checked
from poweropd_lite.checks.pair import load_pair


@cache
def stop_ids(student: str, teacher: str, prompt: int, response: int) -> frozenset[int]:
    """Returns the stop tokens of both models, given as hub ids or folders; raises UserError where the pair is unsound.

    That includes one with fewer positions than a prompt and a response of so many tokens have.
    """
    lengths = {"max_prompt_tokens": prompt, "max_new_tokens": response}
    return load_pair(checked(Config, {"student": student, "teacher": teacher, **lengths})).stop_ids


@register("poweropd_single_turn")
class StopMaskingAgentLoop(SingleTurnAgentLoop):
    """One turn, as verl's own, whose last token is masked where it is a stop token of either model.

    A completion that is nothing else keeps it: verl takes the least loss of a micro-batch, which must have a token.
    """

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """Samples and scores one completion; see AgentLoopBase.run."""
        output = await super().run(sampling_params, priority, **kwargs)
        teachers = [each.model_path for each in self.config.distillation.teacher_models.values() if each.model_path]
        student, lengths = self.config.actor_rollout_ref.model.path, (self.prompt_length, self.response_length)
        stops = frozenset[int]().union(*(stop_ids(student, teacher, *lengths) for teacher in teachers))
        if len(output.response_ids) > 1 and output.response_ids[-1] in stops:
            output.response_mask[-1] = 0
        return output
