"""Which ids are stops, which are forbidden, and what is said about a pair that works but is not alike."""

import pytest
from conftest import edit

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.pair import load_pair

ENDOFTEXT, IM_END = 474, 476  # in the bundled tokenizer


def test_the_bundled_pair(pair):
    assert pair.stop_ids == {ENDOFTEXT, IM_END}
    assert pair.teacher_stop == IM_END
    assert pair.forbidden == tuple(range(479, 512))
    assert pair.notices == () and len(pair.forbidden) == 33  # the padded rows, which doctor tells of


def test_stops_come_from_generation_configs_too(other):
    """A third stop id that only the teacher's generation config names is a stop; no name of a token is known here."""
    teacher = other("teacher", edit("generation_config.json", lambda c: {**c, "eos_token_id": [IM_END, 478]}))
    assert load_pair(load_config("bundled", teacher=teacher)).stop_ids == {ENDOFTEXT, IM_END, 478}


def test_a_token_that_only_the_student_has_is_never_sampled(other):
    def add(folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.add_tokens(["<new>"]) == 1
        tokenizer.save_pretrained(folder)

    pair = load_pair(load_config("bundled", student=other("student", add)))
    assert pair.forbidden == tuple(range(479, 512))
    assert pair.notices[0].startswith("1 tokens that only the student has are never sampled")
    assert len(pair.notices) == 1


def test_a_smaller_teacher_head_forbids_what_it_cannot_score(other):
    teacher = other("teacher", edit("config.json", lambda c: {**c, "vocab_size": 478}))
    pair = load_pair(load_config("bundled", teacher=teacher))
    assert pair.forbidden[0] == 478


def test_a_student_without_a_chat_template_follows_the_teacher(other):
    student = other("student", lambda folder: (folder / "chat_template.jinja").unlink())
    pair = load_pair(load_config("bundled", student=student))
    assert pair.tokenizer.chat_template == pair.teacher_tokenizer.chat_template
    assert "the student has no chat template; prompts follow the teacher's" in pair.notices


def test_templates_that_render_differently_are_shown_side_by_side(other):
    def change(folder):
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace("'<think>\\n\\n</think>\\n\\n'", "''"))

    (notice,) = load_pair(load_config("bundled", teacher=other("teacher", change))).notices
    assert "chat templates differ" in notice and notice.count("<|im_start|>assistant") == 2
    # The same text from another template is no difference.
    same = other(
        "teacher",
        lambda f: (f / "chat_template.jinja").write_text("{# note #}" + (f / "chat_template.jinja").read_text()),
    )
    assert len(load_pair(load_config("bundled", teacher=same)).notices) == 0


BNB, GPTQ = {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq", "bits": 4}


@pytest.mark.parametrize(
    ("role", "stored", "bits", "words"),
    [
        (
            "teacher",
            BNB,
            16,
            "in 4 bits by bitsandbytes, so teacher_bits 16 would be ignored; type --teacher-bits 4, or the id",
        ),
        (
            "student",
            BNB,
            16,
            "in 4 bits by bitsandbytes, so student_bits 16 would be ignored; type --student-bits 4, or the id",
        ),
        ("teacher", GPTQ, 4, "by gptq, and can't be quantised once more to teacher_bits 4; type --teacher-bits 16"),
    ],
)
def test_bits_that_a_quantised_model_would_ignore_are_refused(other, role, stored, bits, words):
    model = other(role, edit("config.json", lambda c: c | {"quantization_config": stored}))
    with pytest.raises(UserError, match=words):
        load_pair(load_config("bundled", **{role: model, f"{role}_bits": bits}))


def test_bits_that_fit_are_taken_and_others_told(other):
    model = other("teacher", edit("config.json", lambda c: c | {"quantization_config": BNB}))
    assert len(load_pair(load_config("bundled", teacher=model)).notices) == 0  # NF4, as the bundled config asks
    model = other("teacher", edit("config.json", lambda c: c | {"quantization_config": GPTQ}))
    told = load_pair(load_config("bundled", teacher=model, teacher_bits=16)).notices
    assert any("are used as they are: teacher_bits is ignored" in notice for notice in told)


def test_the_teacher_s_stop_is_the_one_its_template_ends_turns_with(other):
    """ChatML with an <|endoftext|> for eos, as many base models have: relabel takes <|im_end|>, and says so."""
    teacher = other("teacher", edit("tokenizer_config.json", lambda c: c | {"eos_token": "<|endoftext|>"}))
    pair = load_pair(load_config("bundled", teacher=teacher, stop_mode="relabel", score="full"))
    assert pair.teacher_stop == IM_END
    (notice,) = (n for n in pair.notices if "stop mode" in n or "stop_mode" in n)
    assert "<|im_end|> (476)" in notice and "its tokenizer's eos is <|endoftext|> (474)" in notice
    assert not any(
        "its tokenizer's eos" in n for n in load_pair(load_config("bundled", teacher=teacher)).notices
    )  # mask
