"""The shipped files are the ones that were built: tokenizer, configs, size, and held-out accuracy of both models."""

import json
from pathlib import Path

import pytest

from poweropd_lite.problems import bundled as problems
from poweropd_lite.tiny import build, measure

TINY = Path(build.__file__).parent


def test_the_shipped_tokenizer_is_the_one_that_build_makes():
    for role, eos in (("teacher", "<|im_end|>"), ("student", "<|endoftext|>")):
        made = build.make_tokenizer(eos)
        assert json.loads(made.backend_tokenizer.to_str()) == json.loads((TINY / role / "tokenizer.json").read_text())
        settings = json.loads((TINY / role / "tokenizer_config.json").read_text())
        assert settings["eos_token"] == eos
        assert (TINY / role / "chat_template.jinja").read_text() == made.chat_template


def test_the_tokenizer_is_like_qwens(pair):
    tokenizer = pair.tokenizer
    assert [tokenizer.decode([i]) for i in tokenizer("2026")["input_ids"]] == ["2", "0", "2", "6"]
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]  # NFC
    for text in ("naïve 東京 😀\t\n\n x", "It's 12 * 3 = 36."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "Hi"}]
    thinking = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert thinking == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert build.prompt_text(tokenizer, "Hi") == thinking + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_shipped_models_have_the_shapes_and_stops_of_build(role, pair):
    config = json.loads((TINY / role / "config.json").read_text())
    hidden, layers, head, mlp = build.SHAPES[role]
    assert config["architectures"] == ["Qwen3ForCausalLM"] and config["tie_word_embeddings"]
    got = (config["hidden_size"], config["num_hidden_layers"], config["head_dim"], config["intermediate_size"])
    assert got == (hidden, layers, head, mlp)
    assert all(width % 32 == 0 for width in (hidden, mlp, 4 * head, 2 * head))
    stops = json.loads((TINY / role / "generation_config.json").read_text())["eos_token_id"]
    end, im_end = pair.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert stops == ([im_end, end] if role == "teacher" else end)


def test_both_are_under_8_mb_together():
    files = [p for role in ("teacher", "student") for p in (TINY / role).iterdir()]
    assert {p.suffix for p in files} == {".json", ".jinja", ".safetensors"}
    assert sum(p.stat().st_size for p in files) < 8e6


def test_held_out_accuracy_of_both():
    teacher, student = measure.measure("teacher", samples=2), measure.measure("student", samples=2)
    assert teacher["greedy"] >= 0.90
    assert 0.30 <= student["greedy"] <= 0.40
    assert teacher["avg"] >= 0.90 and student["avg"] <= 0.40
    assert teacher["stop_share"] == 1.0 and student["answer_share"] < 0.8


def test_solutions_are_right_and_the_split_is_a_hash_of_the_question():
    made = problems.problems(5, 2000, held_out=False) + problems.problems(5, 400, held_out=True)
    for problem in made:
        for left, op, right, result in problem.steps:
            exact = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[op]
            assert exact == result >= 0
        assert problem.steps[-1][3] == problem.answer
        assert problem.solution.endswith(f"\\boxed{{{problem.answer}}}")
    questions = [p.question for p in made]
    assert len(set(questions)) == 2400
    assert sum(p.held_out for p in made) == 400
    assert {p.kind for p in made} == set(problems.KINDS) and len(problems.KINDS) == 8
