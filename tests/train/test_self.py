"""Teacher self: the student's own base, its adapter off, which reads more than the student does."""

import json

import torch
from conftest import DATA, TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from poweropd_lite.base.config import load_config
from poweropd_lite.export.card import training
from poweropd_lite.export.prepare import prepare_job
from poweropd_lite.export.settings import ExportConfig
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import CLOSENESS, Draws
from poweropd_lite.method.update import accumulate
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import SelfTeacher
from poweropd_lite.plan.make import plan
from poweropd_lite.problems.prompts import step_indices
from poweropd_lite.run.closeness import measure
from poweropd_lite.run.session import load_session, prepare
from poweropd_lite.train import train

HINT = "{prompt} Its answer is {answer}."
QUICK = {"steps": 2, "batch_size": 4, "max_new_tokens": 24, "data": DATA, "eval_benchmarks": None}


def test_it_is_the_base_while_the_adapter_learns():
    student = load_student(load_config("bundled"), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        for p in student.trainable().values():
            p += 0.05
    teacher, ids = SelfTeacher(student), torch.arange(40, 60)[None]
    base = AutoModelForCausalLM.from_pretrained(TINY / "student", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(teacher.hidden(ids) @ teacher.head.weight.T, base(ids).logits, atol=1e-5, rtol=0)
    student.hidden(ids).sum().backward()
    assert all(p.grad is not None for p in student.trainable().values())


def test_a_step_and_the_kl_estimate_read_the_teachers_prompt():
    """Against transformers' base in float64, one completion at a time, behind the hint in the chat template."""
    config = load_config("bundled", **QUICK, teacher="self", teacher_prompt=HINT, stop_mode="mask")
    session = load_session(prepare(config, print), print)
    ready, tokenizer = session.ready, AutoTokenizer.from_pretrained(TINY / "student")
    base = AutoModelForCausalLM.from_pretrained(TINY / "student", dtype=torch.float64).eval()

    def exact(rollouts, prompts):
        """log p and log q of the tokens: of one model, which reads more as the teacher."""
        found = []
        for rollout, prompt in zip(rollouts, prompts, strict=True):
            hint = f"{prompt.question} Its answer is {prompt.answer}."
            ask = [{"role": "user", "content": hint}]
            text = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True, enable_thinking=False)
            for before in (tokenizer(text, add_special_tokens=False)["input_ids"], list(prompt.ids)):
                kept = list(rollout.completion_ids[:-1] if rollout.finish == "stop" else rollout.completion_ids)
                with torch.no_grad():
                    logits = base(torch.tensor([before + kept])).logits[0, len(before) - 1 : -1]
                found.append(logits.log_softmax(-1).gather(-1, torch.tensor(kept)[:, None])[:, 0])
        return torch.cat(found[::2]), torch.cat(found[1::2])

    session.engine.sync()
    prompts = [ready.prompts[i] for i in step_indices(len(ready.prompts), 4, config.seed, 0)]
    rollouts = ready.sample(session.engine, 0)
    tokens = accumulate(session.student, session.teacher, rollouts, ready.objective, config.tokens_at_once).tokens
    log_p, log_q = exact(rollouts, prompts)
    torch.testing.assert_close(tokens.log_p.double(), log_p, atol=5e-5, rtol=0)
    torch.testing.assert_close(tokens.log_q.double(), log_q, atol=5e-5, rtol=0)
    assert (log_p - log_q).abs().max() > 0.1  # it does read the hint

    asked, plain = ready.prompts[:3], Sampling(forbidden=ready.objective.sampling.forbidden)
    session.engine.sync()
    drawn = session.engine.sample([p.ids for p in asked], Draws(5, CLOSENESS, 0, (0, 1, 2)), plain, 12)
    log_p, log_q = exact(drawn, asked)
    session.engine.sync()
    near, _ = measure(session.engine, lambda: session.teacher, asked, plain.forbidden, 12, 5, 2, 1000)
    assert abs(near.kl - (log_q - log_p).mean().item()) < 1e-4 and abs(near.kl) > 0.01


def test_no_second_model_is_loaded_planned_or_hashed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("bundled", **QUICK | {"steps": 1}, teacher="self", teacher_prompt=HINT, output="run")
    assert train(config).finished
    assert list(json.loads((tmp_path / "run/inputs.json").read_text())["fed"]["models"]) == ["student"]
    found, _ = plan(config, say=lambda text: None)
    assert all("teacher" not in items for items in found["phases"].values())
    card = training(prepare_job(ExportConfig(model="run", to="merged-16bit")))
    assert card["teacher"] == "self (the own base, adapter off)" and HINT in card["teacher's prompts"]


def test_problems_without_what_the_teacher_reads_are_said_to_give_no_kl(tmp_path):
    rows = [{"problem": f"Compute {i} + 2.", "answer": str(i + 2)} for i in range(4)]
    rows[2]["hint"] = "Count on from 2."
    data, some, none = (tmp_path / f"{name}.jsonl" for name in ("data", "some", "none"))
    data.write_text("\n".join(json.dumps(row | {"hint": "Add them."}) for row in rows))
    some.write_text("\n".join(map(json.dumps, rows)))
    none.write_text("\n".join(map(json.dumps, rows[:2])))

    def prepared(**settings):
        said = []
        how = {"teacher": "self", "teacher_prompt": "{prompt} {hint}", "data": str(data), "batch_size": 1}
        ready = prepare(load_config("bundled", **how | settings), said.append)
        about = [line for line in said if "KL" in line]
        return [prompt.question for prompt in ready.unseen], len(ready.held_out[0].prompts), about

    why = "held-out prompts lack what the teacher reads more than the student, or it is too long"
    line = f"3 of 4 {why}: their KL is not estimated"
    assert prepared(eval_benchmarks=str(some)) == (["Compute 2 + 2."], 4, [line])
    line = f"all 2 {why}: the KL to the teacher is not estimated; --hold-out N keeps prompts of the data for it"
    assert prepared(eval_benchmarks=str(none)) == ([], 2, [line])
    assert prepared(eval_benchmarks=str(none), kl_prompts=0) == ([], 2, [])  # no KL was asked for
    (kept,), _, about = prepared(eval_benchmarks=str(none), hold_out=1)
    assert kept.startswith("Compute ") and about == [f"2 of 3 {why}: their KL is not estimated"]
