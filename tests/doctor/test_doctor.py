"""The doctor finds planted faults, says what mends them, and train refuses what it refuses."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import TINY, edit, run_train

from poweropd_lite.base.config import load_config
from poweropd_lite.checks.pair_checks import PROBE
from poweropd_lite.doctor.examine import examine
from poweropd_lite.doctor.packages import check_versions

ENDOFTEXT, IM_END = 474, 476


def run_doctor(*flags, cwd=None):
    return forked.run("-m", "poweropd_lite.doctor", *flags, cwd=cwd or Path.cwd())


def findings(rows=50, **settings):
    return examine(load_config("bundled", **settings), rows, say=print)


def one(found, check, level):
    """The finding of that name, which must be of that level."""
    (finding,) = [f for f in found if f.check == check]
    assert finding.level == level, finding
    return finding


def tokenizer_edit(function):
    return edit("tokenizer.json", function)


def swap(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return tokenizer


def template(function):
    def change(folder):
        path = folder / "chat_template.jinja"
        path.write_text(function(path.read_text()))

    return change


def test_the_bundled_pair_is_sound_and_all_is_looked_at():
    done = run_doctor("--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["sound"] and report["counts"] == {"ok": 18, "warning": 0, "refusal": 0}
    by_check = {f["check"]: f for f in report["findings"]}
    assert by_check["padded rows"]["evidence"] == {
        "student_rows": 512, "teacher_rows": 512, "unscorable": 0, "padded": 33, "first": 479,
    }  # fmt: skip
    assert by_check["stop tokens"]["evidence"] == {"student": [ENDOFTEXT], "teacher": [IM_END, ENDOFTEXT]}
    assert by_check["same text, same tokens"]["evidence"] == {"texts": 2001, "different": 0}
    assert by_check["prompts"]["evidence"]["used"] == 1000
    assert by_check["thinking mode"]["evidence"] == {"student_heeds": True, "teacher_heeds": True}
    # An independent count of the longest of the first thousand prompts, through the tokenizer itself.
    from transformers import AutoTokenizer

    from poweropd_lite.problems.bundled import problems

    tokenizer = AutoTokenizer.from_pretrained(TINY / "student")
    asked = [[{"role": "user", "content": problem.question}] for problem in problems(0, 1000, False)]
    how = {"add_generation_prompt": True, "enable_thinking": False}
    lengths = [len(tokenizer.apply_chat_template(messages, **how)["input_ids"]) for messages in asked]
    assert by_check["prompts"]["evidence"]["longest"] == max(lengths)


def test_a_swapped_tokenizer_and_train_refuses_it_too(other, tmp_path):
    teacher = other("teacher", tokenizer_edit(swap))
    done = run_doctor("--student", "bundled", "--teacher", teacher)
    assert done.returncode == 1
    assert "refusal vocabulary:" in done.stdout and "(2 of 479;" in done.stdout
    assert "mend: choose two models of one family" in done.stdout
    train = run_train("--config", "bundled", "--teacher", teacher, "--output", "run", cwd=tmp_path)
    assert train.returncode == 2 and "number their tokens differently" in train.stderr
    assert not (tmp_path / "run").exists()


def test_shifted_added_tokens(other):
    """One id more before them, as when a tokenizer got a token of its own: every added token is one further."""

    def shift(tokenizer):
        tokenizer["model"]["vocab"]["one more"] = min(token["id"] for token in tokenizer["added_tokens"])
        for token in tokenizer["added_tokens"]:
            token["id"] += 1
        return tokenizer

    finding = one(findings(teacher=other("teacher", tokenizer_edit(shift))), "vocabulary", "refusal")
    assert "number their tokens differently" in finding.found and finding.evidence["moved"] == 5


def test_padded_vocabularies(other):
    teacher = other("teacher", edit("config.json", lambda c: {**c, "vocab_size": 640}))
    student = other("student", edit("config.json", lambda c: {**c, "vocab_size": 576}))
    found = findings(teacher=teacher, student=student)
    assert one(found, "padded rows", "ok").evidence["padded"] == 576 - 479
    assert "heads of 576 (student) and 640 rows (teacher); 479 ids" in one(found, "heads", "ok").found


def test_tokens_that_only_one_has(other):
    def add(folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<new>", "<newer>"])
        tokenizer.save_pretrained(folder)

    finding = one(findings(student=other("student", add)), "student's own tokens", "warning")
    assert finding.evidence["unscorable"] == 2 and "'<new>', '<newer>'" in finding.found
    finding = one(findings(teacher=other("teacher", add)), "vocabulary", "ok")
    assert "2 only the teacher has (such as '<new>', '<newer>')" in finding.found


def test_an_end_of_turn_that_no_config_names(other):
    """The template ends with <|im_end|>; both generation configs and tokenizers say <|endoftext|> alone."""
    from poweropd_lite.checks.pair import load_pair

    def forget(folder):
        edit("generation_config.json", lambda c: {**c, "eos_token_id": ENDOFTEXT})(folder)
        edit("config.json", lambda c: {**c, "eos_token_id": ENDOFTEXT})(folder)
        edit("tokenizer_config.json", lambda c: {**c, "eos_token": "<|endoftext|>"})(folder)

    teacher = other("teacher", forget)
    finding = one(findings(teacher=teacher), "end of turn", "warning")
    assert f"<|im_end|> ({IM_END})" in finding.found and "eos_token_id" in finding.mend
    pair = load_pair(load_config("bundled", teacher=teacher))
    assert pair.stop_ids == {ENDOFTEXT, IM_END}
    assert any("taken as one" in notice for notice in pair.notices)


def test_a_student_without_im_end(other):
    """The teacher's stop is a token that the student does not have at all."""

    def remove(tokenizer):
        for token in tokenizer["added_tokens"]:
            if token["content"] == "<|im_end|>":
                token["content"] = "<|other|>"
        return tokenizer

    def change(folder):
        tokenizer_edit(remove)(folder)
        text = (folder / "tokenizer_config.json").read_text().replace("<|im_end|>", "<|other|>")
        (folder / "tokenizer_config.json").write_text(text)

    found = findings(student=other("student", change))
    assert "'<|other|>' is 476 for the student" in one(found, "vocabulary", "refusal").found


def test_another_chat_template_is_shown_at_its_first_token(other):
    teacher = other("teacher", template(lambda t: t.replace("<|im_start|>assistant", "<|im_start|>teacher")))
    found = findings(teacher=teacher)
    finding = one(found, "chat template", "warning")
    ids = finding.evidence
    at = ids["first_difference"]
    assert ids["student_ids"][:at] == ids["teacher_ids"][:at] and ids["student_ids"][at] != ids["teacher_ids"][at]
    assert "teacher" in finding.found and f"token {at + 1} is the first that differs" in finding.found
    assert one(found, "prompts in the teacher's form", "warning").evidence == {"prompts": 50, "different": 50}


def test_thinking_mode_on_one_side(other):
    teacher = other("teacher", template(lambda t: t.replace("'<think>\\n\\n</think>\\n\\n'", "''")))
    finding = one(findings(teacher=teacher), "thinking mode", "warning")
    assert finding.evidence == {"student_heeds": True, "teacher_heeds": False}
    assert finding.mend == "enable_thinking: true, if that makes the templates agree"
    assert one(findings(teacher=teacher, enable_thinking=True), "chat template", "ok")


def test_a_teacher_that_is_shorter_in_context(other):
    teacher = other("teacher", edit("config.json", lambda c: {**c, "max_position_embeddings": 200}))
    found = findings(teacher=teacher)
    finding = one(found, "context", "refusal")
    lengths = {"longest": {"student": 240, "teacher": 240}, "positions": {"student": 512, "teacher": 200}}
    assert finding.evidence == lengths and finding.mend == "type --max-prompt-tokens 88"
    assert one(findings(teacher=teacher, max_prompt_tokens=88), "context", "ok")
    long = one(findings(teacher=teacher, max_new_tokens=300), "context", "refusal")
    assert long.mend == "type --max-prompt-tokens 50 --max-new-tokens 150"
    both = one(findings(teacher=teacher, max_new_tokens=300, eval_max_new_tokens=500), "context", "refusal")
    assert "a rollout may be 628 tokens long (128 prompt + 500 new), but the student" in both.found
    assert " has 512 positions; a rollout may be 428 tokens long (128 prompt + 300 new), but the teacher " in both.found
    assert both.mend == "type --max-prompt-tokens 50 --max-new-tokens 150 --eval-max-new-tokens 462"


def test_a_stop_id_outside_the_vocabulary(other, tmp_path):
    student = other("student", edit("generation_config.json", lambda c: {**c, "eos_token_id": [ENDOFTEXT, 505]}))
    assert "stop ids [505]" in one(findings(student=student), "stop tokens", "refusal").found
    done = run_train("--config", "bundled", "--student", student, "--output", "run", cwd=tmp_path)
    assert done.returncode == 2 and "stop ids [505]" in done.stderr


def test_prompts_over_the_length():
    found = findings(rows=1000, max_prompt_tokens=40)
    finding = one(found, "rows left out", "warning")
    assert finding.evidence["too_long"] == finding.evidence["skipped"] > 10
    assert "more than max_prompt_tokens 40" in finding.found
    assert one(found, "prompts", "ok").evidence["longest"] <= 40
    assert "no usable problem" in one(findings(max_prompt_tokens=5), "prompts", "refusal").found


def test_other_merges_are_found_on_worked_answers_too(other, tmp_path):
    """Equal vocabularies that cut one text differently: only an answer shows it, no prompt does."""

    def lose(tokenizer):
        merges = tokenizer["model"]["merges"]
        tokenizer["model"]["merges"] = [m for m in merges if "Answer" not in "".join(m)]
        assert len(tokenizer["model"]["merges"]) < len(merges)
        return tokenizer

    data = tmp_path / "data.jsonl"
    teacher = other("teacher", tokenizer_edit(lose))
    for solution, level, different in (("The Answer: 4.", "refusal", 1), ("It is 4.", "ok", 0)):
        data.write_text(json.dumps({"problem": "What is 2 + 2?", "solution": solution}) + "\n")
        finding = one(findings(teacher=teacher, data=str(data)), "same text, same tokens", level)
        assert finding.evidence == {"texts": 3, "different": different}
    assert "Answer" not in PROBE


def test_templates_are_compared_as_they_are_used(other):
    """A system prompt that the teacher would put under another role shows only when there is one."""
    teacher = other(
        "teacher", template(lambda t: "{%- if messages[0].role == 'system' %}{{ 'told: ' }}{%- endif %}" + t)
    )
    one(findings(teacher=teacher), "chat template", "ok")
    found = findings(teacher=teacher, system_prompt="Be brief.")
    assert "told: " in one(found, "chat template", "warning").found
    assert one(found, "prompts in the teacher's form", "warning").evidence == {"prompts": 50, "different": 50}


def test_prompts_that_are_lists_of_messages(other, tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"problem": messages}) + "\n")
    found = findings(data=str(tmp_path / "data.jsonl"))
    assert one(found, "few prompts", "warning").evidence == {"prompts": 1}
    assert one(found, "prompts in the teacher's form", "ok").evidence == {"prompts": 1, "different": 0}


def test_templates_that_fail(other, tmp_path):
    """Prompts follow the student's: without it nothing runs, and the teacher's is missed by nobody."""
    fails = template(lambda t: "{{ 1 + 'a' }}" + t)
    assert "TypeError" in one(findings(student=other("student", fails)), "chat template", "refusal").found
    teacher = other("teacher", fails)
    assert "of the teacher" in one(findings(teacher=teacher), "chat template", "warning").found
    (tmp_path / "data.jsonl").write_text(json.dumps({"problem": "2 + 2?", "solution": "x \ud83d y"}) + "\n")
    one(findings(data=str(tmp_path / "data.jsonl")), "same text, same tokens", "ok")  # half of a character is no text


def test_an_end_of_turn_that_the_teacher_does_not_have(other):
    def change(folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<|mine|>"], special_tokens=True)
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|mine|>")
        tokenizer.save_pretrained(folder)

    finding = one(findings(student=other("student", change)), "end of turn", "warning")
    assert "only one of the two models has: it is never sampled" in finding.found and finding.mend == ""


def test_the_kinds_of_layers_that_a_student_has(other):
    """Mistral names a window and no kinds of layers."""

    def mistral(config):
        kept = {k: v for k, v in config.items() if k not in ("layer_types", "max_window_layers", "use_sliding_window")}
        return {**kept, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}

    finding = one(findings(student=other("student", edit("config.json", mistral))), "attention", "ok")
    assert finding.evidence == {"kinds": ["sliding_attention"], "window": 64}
    assert "transformers' own forward" in finding.found
    assert one(findings(), "attention", "ok").evidence == {"kinds": ["full_attention"], "window": None}


def test_what_else_train_would_refuse():
    assert "nowhere.jsonl" in one(findings(eval_benchmarks="nowhere.jsonl"), "evaluation's problems", "refusal").found
    assert "no module named nope" in one(findings(lora_targets="nope"), "trained modules", "refusal").found


def test_the_next_command_is_of_what_was_examined():
    done = run_doctor("--rows", "5", "--alpha", "3", "--no-gradient-checkpointing")
    flags = "--config bundled --alpha 3 --no-gradient-checkpointing"
    assert done.stdout.splitlines()[-2:] == [
        f"next    python -m poweropd_lite.train {flags}",
        f"        what each reward would pay: python -m poweropd_lite.advise {flags}",
    ]


def test_stop_modes_and_rewards_that_do_not_learn_to_stop():
    finding = one(findings(stop_mode="raw"), "stop mode", "warning")
    assert "stopping is punished" in finding.found and finding.mend == "stop_mode: mask"
    assert "need not learn to stop" in one(findings(reward="full_kl"), "stop mode", "warning").found
    assert one(findings(), "stop mode", "ok")


def test_what_needs_a_card_is_refused_here_and_in_training(tmp_path):
    for flags, check in [
        (["--teacher-bits", "8"], "teacher's bits"),
        (["--optimizer", "adamw8bit"], "optimizer"),
        (["--engine", "vllm"], "loader and engine"),
        (["--dtype", "float16"], "compute dtype"),
    ]:
        doctor = run_doctor(*flags, "--rows", "5")
        assert doctor.returncode == 1 and f"refusal {check}" in doctor.stdout, doctor.stdout
        train = run_train("--config", "bundled", *flags, "--output", "run", cwd=tmp_path)
        assert train.returncode == 2, flags


def test_versions_that_do_not_go_together(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["transformers<1"] if name == "peft" else [])
    finding = check_versions()
    assert finding.level == "warning" and "wants transformers <1, and " in finding.found
    monkeypatch.undo()
    assert check_versions().level == "ok"
    absent = [name for name in ("unsloth", "vllm") if importlib.util.find_spec(name) is None]  # and the others are here
    assert check_versions().found == (
        f"{8 - len(absent)} of 8 packages are here, in versions that go together"
        + (f"; not here: {', '.join(absent)}" if absent else "")
    )
    real = importlib.metadata.version
    for package, version in (
        ("transformers", "5.2.0"),
        ("bitsandbytes", "0.43.0"),
        ("tokenizers", "0.10.0"),
        ("pydantic", "1.10.0"),
    ):
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name, p=package, v=version: v if name == p else real(name)
        )
        finding = check_versions()
        assert finding.level == "warning" and f"{version} is here" in finding.found, package


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "0"], "rows: found '0'"),
        (["--env", "--rows", "5"], "--env examines no pair"),
        (["--student", "bundled", "--teacher", "/nowhere"], "no tokenizer for the teacher at '/nowhere'"),
        (["--alpha", "-1"], "alpha: found '-1'"),
    ],
)
def test_bad_input(flags, message):
    done = run_doctor(*flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_without_torch_env_says_that_it_is_missing():
    """As before `pip install`: neither in the packages' metadata nor to be imported."""
    code = """
import importlib.metadata, sys
from poweropd_lite.doctor.__main__ import main
real = importlib.metadata.version
def version(name):
    if name == "torch":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version, sys.modules["torch"] = version, None
print("code", main(["--env"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\ncan't run: torch missing\nto get what is missing:\n  torch: pip install -e .\n" in done.stdout


def test_help_imports_no_torch():
    code = """
import contextlib, sys
from poweropd_lite.doctor.__main__ import main
with contextlib.suppress(SystemExit):
    main(["--help"])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--rows" in done.stdout and "--env" in done.stdout, done.stderr
