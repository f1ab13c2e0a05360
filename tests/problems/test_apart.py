"""What the chat template is told, and a teacher whose prompts are its own."""

import copy
import json
from contextlib import nullcontext

import pytest
from conftest import edit

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.pair import check_prompts, load_pair
from poweropd_lite.checks.pair_checks import check_templates
from poweropd_lite.cli import as_flags
from poweropd_lite.doctor.examine import check_data
from poweropd_lite.problems import reading, stored
from poweropd_lite.problems.apart import asked_apart
from poweropd_lite.problems.benchmarks import Benchmark, load_problems
from poweropd_lite.problems.reading import load_prompts
from poweropd_lite.problems.rows import Source

ROWS = [
    {"problem": "Compute 1 + 2.", "answer": "3", "solution": "1 + 2 = 3, a {brace}"},
    {"problem": "Compute 2 + 2.", "answer": "4", "solution": ""},
    {"problem": "Compute 3 + 2.", "answer": "5", "solution": "word " * 200},
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return str(path)


def loaded(pair, tokenizer=None, **settings):
    config = load_config("bundled", **settings)
    apart = asked_apart(config, tokenizer or pair.tokenizer, pair.teacher_tokenizer)
    return load_prompts(config, tokenizer or pair.tokenizer, teacher=apart)


def asked(tokenizer, question, **options):
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True, **options)  # fmt: skip
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_thinking_may_differ_between_student_and_teacher(pair, data):
    plain, _ = loaded(pair, data=data)
    (prompt, *_), _ = loaded(pair, data=data, teacher_enable_thinking=True)
    tokenizer, question = pair.tokenizer, ROWS[0]["problem"]
    assert (
        prompt.ids == plain[0].ids == asked(tokenizer, question, enable_thinking=False) and plain[0].teacher_ids == ()
    )
    assert prompt.teacher_ids == asked(tokenizer, question, enable_thinking=True) != prompt.ids
    assert prompt.ids_digest != plain[0].ids_digest and prompt.messages_digest == plain[0].messages_digest


def test_template_arguments_of_both_and_of_the_teacher_alone(pair, data):
    tokenizer = copy.deepcopy(pair.tokenizer)
    tokenizer.chat_template = "{{ messages[-1].content }} {{ effort }} {{ date_string }}"
    how = {"data": data, "teacher": "self"}  # whose template is the student's
    (both, *_), _ = loaded(pair, tokenizer, data=data, template_kwargs='{"effort": "low", "date_string": "1 May 2030"}')
    assert tokenizer.decode(list(both.ids)) == "Compute 1 + 2. low 1 May 2030" and both.teacher_ids == ()
    own = {"template_kwargs": {"effort": "low"}, "teacher_template_kwargs": {"effort": 7}}
    (apart, *_), _ = loaded(pair, tokenizer, **how, **own)
    assert tokenizer.decode(list(apart.ids)) == "Compute 1 + 2. low 26 Jul 2024"
    assert tokenizer.decode(list(apart.teacher_ids)) == "Compute 1 + 2. 7 26 Jul 2024"
    assert as_flags(own) == """--template-kwargs '{"effort": "low"}' --teacher-template-kwargs '{"effort": 7}'"""


def test_the_teachers_prompt_is_filled_from_the_row_and_rows_without_are_named(pair, data, tmp_path, monkeypatch):
    how = {"data": data, "teacher_prompt": "{prompt} Hint: {solution} ({answer})", "prompt_suffix": " Box it."}
    (prompt,), skipped = loaded(pair, **how)
    shown = "Compute 1 + 2. Box it. Hint: 1 + 2 = 3, a {brace} (3)"
    assert prompt.teacher_ids == asked(pair.tokenizer, shown, enable_thinking=False)
    assert prompt.ids == asked(pair.tokenizer, "Compute 1 + 2. Box it.", enable_thinking=False)
    assert [(row.reason.partition(" tokens")[0], row.too_long) for row in skipped] == [
        ("'solution', which teacher_prompt wants, is not there or holds no text", False),
        ("the teacher's prompt has 635", True),
    ]
    # Problems to be scored stay, for the student alone.
    config = load_config("bundled", **how)
    apart = asked_apart(config, pair.tokenizer, pair.teacher_tokenizer)
    held = load_problems(Benchmark("rows", Source(data)), pair.tokenizer, config, None, (None, None), print, apart)
    assert [bool(p.teacher_ids) for p in held.prompts] == [True, False, False]
    # And so it is of a large file, whose prompts are kept: with other words for the teacher they are others.
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(stored, "LARGE", 1)
    monkeypatch.setattr(reading, "is_large", stored.is_large)
    assert loaded(pair, **how)[0][0] == prompt
    assert loaded(pair, **how | {"teacher_prompt": "{prompt} {answer}"})[0][0].teacher_ids != prompt.teacher_ids


def test_what_the_teacher_reads_is_held_to_its_own_vocabulary(other, data):
    """A head without a row for </think>: what matters is who reads the empty think block."""
    small = other("teacher", edit("config.json", lambda c: {**c, "vocab_size": 478}))
    for thinking in (True, False):
        config = load_config("bundled", data=data, teacher=small, enable_thinking=thinking, teacher_enable_thinking=not thinking)  # fmt: skip
        pair = load_pair(config)
        prompts, _ = load_prompts(config, pair.tokenizer, teacher=pair.apart)
        with pytest.raises(UserError, match=r"hold tokens that .* \('</think>'\)") if thinking else nullcontext():
            check_prompts(pair, config, prompts)


def test_doctor_shows_what_both_read(pair, data):
    config = load_config("bundled", data=data, teacher_enable_thinking=True)
    templates, thinking = check_templates(config, *pair.sides)
    assert (templates.level, thinking.found) == ("ok", "off for the student, on for the teacher")
    assert "the student is asked" in templates.found and "first that differs: <think>" in templates.found
    shown = next(f for f in check_data(config, load_pair(config), 10) if f.check == "the teacher's prompts")
    assert shown.found.startswith(
        "3 of 3 are other than the student's: where it reads '<|im_start|>user\\nCompute 1 + 2."
    )
    same = load_config("bundled", data=data, teacher_enable_thinking=False)
    assert next(f for f in check_data(same, load_pair(same), 10) if f.check == "the teacher's prompts").evidence["different"] == 0  # fmt: skip


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"template_kwargs": "{x"}, "template_kwargs: found '{x'.*mapping of names to plain values"),
        ({"template_kwargs": "[1]"}, "mapping of names"),
        ({"template_kwargs": {"a-b": 1}}, "mapping of names"),
        ({"template_kwargs": {"enable_thinking": True}}, "sets enable_thinking, which is set elsewhere"),
        ({"teacher_template_kwargs": {"tools": [], "tokenize": True}}, "sets tokenize, tools"),
        ({"teacher_prompt": "Hint: {answer}"}, "no {prompt}"),
        ({"teacher": "self", "full_finetune": True}, "full_finetune changes; type --no-full-finetune"),
        ({"teacher": "self", "modules_to_save": "lm_head"}, "modules_to_save changes"),
        ({"teacher": "self"}, "reads what the student reads, so every reward is 0"),
    ],
)
def test_what_can_not_be_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        load_config("bundled", **settings)
