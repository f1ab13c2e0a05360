"""One question to a student: what plain transformers and PEFT answer, asked as in training."""

import io
import shutil
import sys

import pytest
from conftest import DATA, TINY, edit, run_here

from poweropd_lite import chat
from poweropd_lite.ask import ask, before_and_after, main
from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.train import train

QUESTION, OTHER = "Compute 12 + 30 - 7.", "Compute 4 * 5 + 8 * 11."


def generated(model, folder, question=QUESTION, longest=112):
    """The greedy answer by transformers' own generate."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    inputs = tokenizer(text, return_tensors="pt")
    stops = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    done = model.generate(**inputs, max_new_tokens=longest, do_sample=False, eos_token_id=stops)
    return tokenizer.decode(done[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_bundled_teacher_works_it_out_and_boxes_35():
    answer = ask("bundled-teacher", QUESTION)
    assert answer == "12 + 30 = 42\n42 - 7 = 35\nAnswer: \\boxed{35}"


def test_before_and_after_are_what_transformers_and_peft_say(trained, student_model):
    from peft import PeftModel

    assert ask("bundled-student", QUESTION) == generated(student_model, TINY / "student")
    run = trained / "run"
    live = PeftModel.from_pretrained(student_model, run / "adapter").eval()
    after = generated(live, run / "adapter")
    assert ask(run, QUESTION) == ask(run / "adapter", QUESTION) == after
    after = generated(live, run / "adapter", OTHER)
    with live.disable_adapter():
        before = generated(live, run / "adapter", OTHER)
    assert before_and_after(run, OTHER) == before_and_after(run / "adapter", OTHER) == (before, after)
    assert before != after
    shown = run_here(main, str(run), OTHER, "--before")
    assert (shown.returncode, shown.stdout) == (0, f"before:\n{before}\n\nafter:\n{after}\n")


def test_a_whole_model_has_no_before():
    with pytest.raises(UserError, match="bundled-student is a whole model and no run's, so there is no before"):
        before_and_after("bundled-student", QUESTION)


def test_it_is_asked_as_the_run_was_trained(trained, tmp_path):
    """A suffix in the run's config is put behind the question."""
    shutil.copytree(trained / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text()
    assert "prompt_suffix: ''" in text
    config.write_text(text.replace("prompt_suffix: ''", "prompt_suffix: ' Then add 1000.'"))
    assert ask(tmp_path / "run", QUESTION) == ask(trained / "run", QUESTION + " Then add 1000.")


@pytest.mark.parametrize(
    ("model", "question", "changes", "words"),
    [
        ("nowhere/at/all", QUESTION, {}, "no folder nowhere/at/all"),
        ("bundled-student", "  ", {}, "can't be asked: 'question' is empty"),
        ("bundled-student", "1 + " * 200 + "1", {}, "more than the model's 512 positions; ask something shorter"),
        ("bundled-student", QUESTION, {"max_new_tokens": 0}, "max_new_tokens"),
        ("bundled-student", QUESTION, {"max_new_tokens": 10**6}, "positions; ask with --max-new-tokens "),
    ],
)
def test_what_cannot_be_asked_is_said(model, question, changes, words):
    with pytest.raises(UserError) as error:
        ask(model, question, **changes)
    assert words in str(error.value)


def test_an_adapter_whose_base_moved_is_asked_with_base(trained, tmp_path, student_model):
    from peft import PeftModel

    shutil.copytree(TINY / "student", tmp_path / "moved" / "student")
    shutil.copytree(trained / "run" / "adapter", tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").unlink()
    after = generated(PeftModel.from_pretrained(student_model, tmp_path / "mine").eval(), tmp_path / "mine")
    for gone, words in (
        ("/gone/student", "mine names /gone/student base model, which is not here; type --base with its base model"),
        ("gone/student", "or type --base with a hub id, a folder that save_pretrained wrote, or 'bundled'"),
    ):
        edit("adapter_config.json", lambda c, gone=gone: c | {"base_model_name_or_path": gone})(tmp_path / "mine")
        shown = run_here(main, "mine", QUESTION, cwd=tmp_path)
        assert (shown.returncode, shown.stdout) == (2, "") and words in shown.stderr
        shown = run_here(main, "mine", QUESTION, "--base", "moved/student", "--max-new-tokens", "112", cwd=tmp_path)
        assert (shown.returncode, shown.stdout) == (0, f"{after}\n"), shown.stderr


OWN = """
from transformers import Qwen3Config, Qwen3ForCausalLM
class OwnConfig(Qwen3Config):
    model_type = "own"
class Own(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


def test_models_with_code_of_their_own_are_asked_where_that_is_trusted(tmp_path, student_model, monkeypatch, capsys):
    from peft import PeftModel

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    for role in ("student", "teacher"):
        shutil.copytree(TINY / role, tmp_path / f"own_{role}")
        (tmp_path / f"own_{role}" / "own.py").write_text(OWN)
        its = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
        edit("config.json", lambda c, its=its: c | its)(tmp_path / f"own_{role}")
    short = {"steps": 1, "batch_size": 4, "max_new_tokens": 24, "data": DATA, "eval_benchmarks": None, "lr": 0.03}
    own = {"student": "own_student", "teacher": "own_teacher", "trust_remote_code": True, "output": "run"}
    assert train(load_config("bundled", **short, **own)).finished
    following = [line for line in capsys.readouterr().out.splitlines() if "poweropd_lite." in line]
    asks = [line for line in following if any(name in line for name in (".chat ", ".evaluate ", ".export "))]
    assert len(asks) == 3 and all(line.endswith(" --trust-remote-code") for line in asks)
    before = generated(student_model, TINY / "student", longest=24)
    after = generated(PeftModel.from_pretrained(student_model, "run/adapter").eval(), "run/adapter", longest=24)
    assert before != after  # a step that long

    def said(command, *flags):
        monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION))
        return run_here(command.main if command is chat else command, *flags)

    # Of a run too it is asked for anew: its folder may be somebody else's.
    assert said(main, "run", QUESTION, "--before", "--trust-remote-code").stdout.endswith(
        f"before:\n{before}\n\nafter:\n{after}\n"
    )
    shown = said(chat, "run", "--teacher", "--trust-remote-code")
    assert shown.returncode == 0, shown.stderr
    assert f"\n{before}\n" in shown.stdout and f"\n{after}\n" in shown.stdout and "\nteacher (" in shown.stdout
    alone = ["own_student", QUESTION, "--max-new-tokens", "24"]
    assert said(main, *alone, "--trust-remote-code").stdout.endswith(f"{before}\n")
    assert ask("own_student", QUESTION, max_new_tokens=24, trust_remote_code=True) == before
    shown = said(chat, "own_student", "--trust-remote-code", "--max-new-tokens", "24")
    assert f"\n{before}\n" in shown.stdout
    untrusted = (
        "error: no model config for the {} at 'own_student': it needs Python code that comes with it, which is not run "
        "unasked; type --trust-remote-code (in Python trust_remote_code=True) if you trust its source\n"
    )
    for command, *flags in (
        (main, *alone),
        (chat, "own_student"),
        (main, "run", QUESTION),
        (chat, "run"),
    ):
        shown = said(command, *flags)
        assert (shown.returncode, shown.stdout, shown.stderr) == (2, "", untrusted.format("model"))

    (tmp_path / "own_teacher").rename(tmp_path / "elsewhere")
    shown = said(chat, "run", "--teacher", "--trust-remote-code")
    assert shown.returncode == 2 and "no model config for the teacher at 'own_teacher': " in shown.stderr
    assert shown.stderr.endswith("\nit is the run's teacher; leave out --teacher\n")
