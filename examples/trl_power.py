"""The power reward in TRL 1.16's own DistillationTrainer, whose loss it takes the place of; TRL samples, batches, saves, logs.

    pip install trl==1.16.0
    python examples/trl_power.py                            # the bundled pair: three minutes of a CPU
    python examples/trl_power.py --config qwen3-0.6b-4b     # Qwen3, on a card

Pair, data, alpha, sampling, batch, learning rate and LoRA are those of a config of train's; the rest is TRL's. What was tried
and what was not: docs/verl.md.
"""

import argparse
import math
from collections.abc import Collection
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DistillationConfig, DistillationTrainer

from poweropd_lite.base.config import load_config
from poweropd_lite.checks.pair import load_pair
from poweropd_lite.kernels.head import target_logprobs
from poweropd_lite.method.logprobs import Sampling, score_tokens
from poweropd_lite.models.loading import head_of, load_causal_lm
from poweropd_lite.problems.prompts import template_options
from poweropd_lite.problems.reading import hold_out, load_prompts
from poweropd_lite.rewards.paper import power


class PowerTrainer(DistillationTrainer):
    """On-policy distillation with p^alpha - q^alpha a token; the final stop token, one of `stop_ids`, is left out of the loss."""

    def __init__(self, *args: Any, alpha: float, stop_ids: Collection[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha, self.stop_ids = alpha, stop_ids
        self.sampling = Sampling(self.args.temperature, self.args.top_k, self.args.top_p)

    def _generate(self, prompts: list) -> tuple:
        # TRL's mask of a tool's tokens says what is not learnt from, before it counts the N of the whole step.
        prompt_ids, completion_ids, _, *rest = super()._generate(prompts)
        mask = [[1] * (len(ids) - 1) + [int(ids[-1] not in self.stop_ids)] for ids in completion_ids]
        return prompt_ids, completion_ids, mask, *rest

    def _compute_loss(self, student, inputs: dict, count: torch.Tensor | None) -> tuple:
        ids, seen = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], 1) for x in ("ids", "mask"))
        asked = ids, seen, inputs["completion_ids"].shape[1]
        kept = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        tokens, teacher = inputs["completion_ids"][kept], self.accelerator.unwrap_model(self.teacher_model)
        with torch.no_grad():
            theirs = self._get_last_hidden_state(teacher, *asked)[kept]
            log_p = target_logprobs(theirs, head_of(teacher), tokens)

        def weigh(log_q: torch.Tensor, some: slice) -> torch.Tensor:
            return -power(log_p[some], log_q, alpha=self.alpha)

        hidden = self._get_last_hidden_state(student, *asked)[kept]
        scores = score_tokens(hidden, head_of(student), tokens, self.sampling, "sampled", weigh)
        paid = power(log_p, scores.logprob, alpha=self.alpha)
        self._metrics["train" if student.training else "eval"]["reward"].append(paid.mean().item())
        n = kept.sum()
        return scores.score.sum() / (n.clamp(min=1) if count is None else count), scores.entropy.sum(), n


def main(name: str, steps: int, output: str) -> None:
    """Trains a LoRA adapter for `steps` steps by the config `name`, and saves it in `output`."""
    config, cuda = load_config(name), torch.cuda.is_available()
    if config.reward != "power":
        raise SystemExit(f"{name} asks for the reward {config.reward}; this example has power alone")
    at_once = math.gcd(config.batch_size, 8)
    pair, dtype = load_pair(config), torch.bfloat16 if cuda else torch.float32
    prompts, _ = load_prompts(config, pair.tokenizer)
    if config.hold_out:
        prompts, _ = hold_out(prompts, config.hold_out, config.data)
    asked = [[{"role": role, "content": text} for role, text in prompt.messages] for prompt in prompts]
    trainer = PowerTrainer(
        load_causal_lm(config.student, "student", dtype),
        load_causal_lm(config.teacher, "teacher", dtype),
        alpha=config.alpha,
        stop_ids=pair.stop_ids,
        args=DistillationConfig(
            output,
            max_steps=steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=config.batch_size // at_once,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            max_completion_length=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=config.seed,
            chat_template_kwargs=template_options(config),
            bf16=cuda,
            use_cpu=not cuda,
            logging_steps=1,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": messages} for messages in asked]),
        processing_class=pair.tokenizer,
        peft_config=LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="bundled", help="a config of train's: a shipped one's name, or a file")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", default="trl-power")
    args = parser.parse_args()
    main(args.config, args.steps, args.output)
