"""One question to a student: what plain transformers and PEFT answer, asked as in training."""

import pytest
from conftest import TINY, run_here

from poweropd_lite.ask import ask, before_and_after, main
from poweropd_lite.base.errors import UserError

QUESTION, OTHER = "Compute 12 + 30 - 7.", "Compute 4 * 5 + 8 * 11."


def generated(model, folder, question=QUESTION):
    """The greedy answer by transformers' own generate."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    inputs = tokenizer(text, return_tensors="pt")
    stops = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    done = model.generate(**inputs, max_new_tokens=112, do_sample=False, eos_token_id=stops)
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
    import shutil

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
