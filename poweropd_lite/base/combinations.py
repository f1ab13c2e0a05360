"""Settings that can't work together, each with what to type instead."""

import shlex
from typing import Any

from poweropd_lite.base.fields import function_fault
from poweropd_lite.base.teachers import SELF, teacher_faults
from poweropd_lite.rewards.table import reward_of

# Arguments of a chat template, and of transformers' call of it, that a run has by other settings or gives itself.
_SET_HERE = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize", "padding"),
    *("continue_final_message", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
    *("return_assistant_tokens_mask", "enable_thinking"),
}  # fmt: skip


def impossible(config: Any) -> list[str]:  # a Config, whose file imports this one
    """Returns what in a run's settings can't work, a sentence each."""
    problems = teacher_faults(config) + _of_reward(config)
    if config.score == "sampled" and config.stop_mode == "relabel" and reward_of(config.reward).pay is not None:
        problems.append(
            "stop_mode relabel scores a token that was not sampled, which score sampled can't do; "
            "type --score full, or --stop-mode cross_eos"
        )
    longest = config.max_prompt_tokens + config.max_new_tokens
    for name in ("token_budget", "teacher_token_budget"):
        if isinstance(budget := getattr(config, name), int) and budget < longest:
            problems.append(
                f"{name} {budget} is less than one longest rollout ({config.max_prompt_tokens} prompt + {config.max_new_tokens} "
                f"new tokens); type --{name.replace('_', '-')} {longest}, or lower --max-prompt-tokens"
            )
    for name in ("template_kwargs", "teacher_template_kwargs"):
        if odd := sorted(_SET_HERE & (getattr(config, name) or {}).keys()):
            problems.append(f"{name} sets {', '.join(odd)}, which is set elsewhere; leave it out")
    if config.teacher_prompt and "{prompt}" not in config.teacher_prompt:
        problems.append("teacher_prompt has no {prompt}, so the teacher would not see the problem; put it in")
    if config.warmup_steps >= config.steps:
        problems.append(
            f"warmup_steps {config.warmup_steps} leaves no step of {config.steps} at the full learning rate; "
            f"type --warmup-steps {config.steps // 20}"
        )
    if config.teacher_offload and not config.loads_teacher:
        problems.append("teacher_offload is of a teacher that is loaded beside the student; leave it out")
    if config.teacher_offload and config.teacher_bits == 8:
        problems.append(
            "teacher_offload can't take the layers of teacher_bits 8 (LLM.int8) apart; type --teacher-bits 4 or 16"
        )
    if config.full_finetune and config.student_bits == 4:
        problems.append("full_finetune trains every weight, and a 4-bit weight can't be; type --student-bits 16")
    if config.engine == "vllm" and (config.full_finetune or config.modules_to_save):
        problems.append("engine vllm is sent an adapter, and nothing else can be trained with it; type --engine loop")
    if config.full_finetune and config.adapter is not None:
        problems.append(
            "full_finetune has no adapter to train on from; type --no-full-finetune, or merge it and take the result: "
            f"python -m poweropd_lite.export {shlex.quote(str(config.adapter))} --to merged-16bit, and --student with its folder"
        )
    if config.teacher == SELF and (config.full_finetune or config.modules_to_save):
        whole = "full_finetune" if config.full_finetune else "modules_to_save"
        mend = "--no-full-finetune" if config.full_finetune else "--modules-to-save ''"
        mend = "--adapter with one that trains no module whole" if config.adapter is not None else mend
        problems.append(
            f"teacher self is the student's base, which {whole} changes; type {mend}, or --teacher with another model"
        )
    asked_otherwise = config.teacher_enable_thinking is not None or config.teacher_template_kwargs is not None
    if config.teacher == SELF and config.adapter is None and not (config.teacher_prompt or asked_otherwise):
        problems.append(
            "teacher self reads what the student reads, so every reward is 0 and stays so; type --teacher-prompt with what it "
            "is shown more, or --teacher with another model"
        )
    if config.full_finetune and config.modules_to_save:
        problems.append("full_finetune trains every module already; leave out --modules-to-save")
    if config.eval_every and not config.evaluates:
        problems.append(
            "eval_every needs problems to score; type --eval-benchmarks math500 (or a file), --hold-out 100 for some of "
            "the data, or --eval-every 0"
        )
    if fault := function_fault(config.eval_grader):
        problems.append(f"eval_grader: {fault}")
    if config.eval_grader is not None and not config.evaluates:
        problems.append(
            "eval_grader needs problems to score; type --hold-out 100 for some of the data, or --eval-benchmarks with a file"
        )
    if "lm_head" in [name.strip() for name in config.lora_targets.split(",")]:
        problems.append("an adapter on lm_head is not supported; train the head whole: --modules-to-save lm_head")
    if config.full_finetune and config.dtype == "float16":
        problems.append("full_finetune in float16 loses small updates; type --dtype bfloat16 or --dtype float32")
    return problems


def _of_reward(config: Any) -> list[str]:
    """Returns what in the reward's settings can't work, or not beside it."""
    entry, name, problems = reward_of(config.reward), config.reward, list[str]()
    if entry.pay is None and config.importance_cap is not None:
        problems.append(f"{name} has no reward to weigh; leave out --importance-cap, or choose another --reward")
    if config.baseline == "own" and (entry.pay is None or {"log_ref", "noise"} & {*entry.needs}):
        why = "pays no single token" if entry.pay is None else "is known of the sampled tokens alone"
        problems.append(f"baseline own is the mean of a reward over the vocabulary, and {name} {why}; leave it out")
    if "log_ref" in entry.needs and (config.full_finetune or config.modules_to_save):
        whole = "full_finetune" if config.full_finetune else "modules_to_save"
        problems.append(f"{name} refers to the student without its adapter, which {whole} changes; leave that out")
    if odd := [key for key, value in config.reward_settings.items() if type(value) not in (int, float)]:
        problems.append(f"reward_settings: {', '.join(odd)} should be a number")
    strange = [key for key in config.reward_settings if key not in entry.defaults] if ":" not in name else []
    if strange:
        there = f"; it has {', '.join(entry.defaults)}" if entry.defaults else " of that kind; leave it out"
        fields = [f"--{key.replace('_', '-')}" for key in strange if key in entry.settings]
        instead = f"; type {' '.join(fields)}" if fields else there
        problems.append(f"reward_settings: reward {name} has no {', '.join(strange)}{instead}")
    return problems
