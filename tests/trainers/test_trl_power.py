"""examples/trl_power.py: TRL's own trainer takes the step that ours takes, and runs from its command line."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from poweropd_lite.method.batch import Stops
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.loss import divide_gradients
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import Objective, accumulate
from poweropd_lite.models.loading import load_causal_lm
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher
from poweropd_lite.problems.reading import hold_out, load_prompts

EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_power.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("trl_power", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRUNCATED = Sampling(temperature=0.9, top_k=20, top_p=0.95)
# TRL pads prompts on the left, which moves their positions, whose angles are float32 in transformers' float64 models, too.
CASES = {"plain": (Sampling(), False, 1e-6), "truncated": (TRUNCATED, False, 1e-6), "padded": (Sampling(), True, 1e-5)}


@pytest.mark.parametrize("case", CASES)
def test_trl_takes_our_step(case, example, rollouts, prompts, teacher_model, pair, tmp_path):
    """The gradient of every weight before TRL's AdamW, of rollouts that it is handed where it would sample: float64."""
    assert trl.__version__ == "1.16.0"
    sampling, padded, near = CASES[case]
    ours = [*rollouts[:7], Rollout(prompts[7].ids, tuple(range(40, 60)), (0.0,) * 20, "length")]
    lengths = {len(rollout.prompt_ids) for rollout in ours}
    assert len(lengths) > 1
    if not padded:
        ours = [dataclasses.replace(rollout, prompt_ids=rollout.prompt_ids[-min(lengths) :]) for rollout in ours]
    student = Student(load_causal_lm("bundled", "student", torch.float64), torch.device("cpu"), torch.float64)
    objective = Objective("power", {"alpha": 10.0}, sampling, stops=Stops("mask", pair.teacher_stop))
    step = accumulate(student, Teacher(teacher_model), ours, objective, 4096)
    parameters = student.trainable()
    divide_gradients(parameters.values(), step.count)

    found = {}

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *_, model, **__):
            found.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    args = trl.DistillationConfig(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_grad_norm=0.0,  # not clipped
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model = load_causal_lm("bundled", "student", torch.float64)
    trainer = example.PowerTrainer(
        model,
        teacher_model,
        alpha=10.0,
        stop_ids=pair.stop_ids,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "its ids are handed in"}] * len(ours)),
        processing_class=pair.tokenizer,
        callbacks=[Watch()],
    )
    trainer._tokenize_prompts = lambda texts: ([list(r.prompt_ids) for r in ours], None, {})
    trainer._generate_single_turn = lambda *_: [list(r.completion_ids) for r in ours]
    loss = trainer.train().training_loss
    assert loss == pytest.approx(step.loss.item() / step.count, rel=near)
    assert step.count < sum(len(r.completion_ids) for r in ours)  # some end by a stop token, which is masked
    assert parameters.keys() == found.keys()
    for name, parameter in parameters.items():
        assert (found[name] - parameter.grad).norm() < near * parameter.grad.norm(), name


def test_the_prompts_are_those_that_train_takes_of_the_config(example, pair, other, tmp_path, monkeypatch):
    """The ids that TRL's trainer makes: columns, system prompt, suffix, template, length and held-out problems are the config's."""
    asked = [f"What is {i} plus {i}?" for i in range(6)] + ["long " * 200]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps({"task": each, "problem": "?"}) + "\n" for each in asked))
    template = "{{ mood }}" + pair.tokenizer.chat_template
    student = other("student", lambda folder: (folder / "chat_template.jinja").write_text(template))
    settings = {"student": student, "teacher": "bundled", "data": str(tmp_path / "my.jsonl"), "prompt_column": "task"}
    settings |= {"system_prompt": "Add.", "prompt_suffix": " Box it.", "max_prompt_tokens": 128, "hold_out": 2}
    settings |= {"enable_thinking": True, "template_kwargs": {"mood": "calm"}, "batch_size": 4, "max_new_tokens": 64}
    (tmp_path / "own.yaml").write_text(json.dumps(settings))  # JSON is YAML
    trainers = []
    monkeypatch.setattr(example.PowerTrainer, "train", lambda self: trainers.append(self))
    monkeypatch.setattr(example.PowerTrainer, "save_model", lambda self: None)
    example.main(str(tmp_path / "own.yaml"), 1, str(tmp_path / "out"))

    rows = trainers[0].train_dataset["prompt"]
    assert len(rows) == 4  # of seven one is too long and two are held out
    assert {len(row) for row in rows} == {2} and {row[0]["content"] for row in rows} == {"Add."}
    assert {row[1]["content"] for row in rows} < {f"{each} Box it." for each in asked[:6]}
    ids, *_ = trainers[0]._tokenize_prompts(list(rows))
    config = example.load_config(str(tmp_path / "own.yaml"))
    prompts, _ = load_prompts(config, example.load_pair(config).tokenizer)
    assert pair.tokenizer.decode(ids[0]).startswith("calm<|im_start|>system\nAdd.<|im_end|>")
    assert [tuple(each) for each in ids] == [prompt.ids for prompt in hold_out(prompts, 2, config.data)[0]]


def test_the_example_runs_as_its_docstring_says(tmp_path):
    """Two steps of the bundled pair, sampled by TRL: rewards in [-1, 1], and an adapter that has learnt something."""
    command = [sys.executable, str(EXAMPLE), "--steps", "2", "--output", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    rewards = [line["reward"] for line in state["log_history"] if "reward" in line]
    assert len(rewards) == 2 and all(
        -1 < reward < 0 for reward in rewards
    )  # the base student falls short of its teacher
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)  # which begins as 0
