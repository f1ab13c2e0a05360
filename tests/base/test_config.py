"""The config: every shipped file, flags over YAML, notes on what is ignored, and --help without torch."""

import json
import subprocess
import sys

import pytest
import torch

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.base.config_files import config_folder, dump_yaml, shipped_configs
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.machine import compute_dtype
from poweropd_lite.cli import config_parser, given
from poweropd_lite.run.session import learning_rate


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_loads_is_short_and_says_what_memory_it_needs(name):
    config = load_config(name)
    lines = (config_folder() / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("#") and "GiB" in lines[0]
    assert len(lines) <= 20
    defaults, ours = Config().model_dump(), config.model_dump()
    needless = {"student", "teacher"}  # a reader wants to see the pair even where it is the default
    for line in lines[1:]:
        key = line.split(":")[0]
        assert key in needless or ours[key] != defaults[key], f"{key} repeats the default"


def test_shipped_configs_are_the_ones_promised():
    pairs = [f"qwen3-{student}-{teacher}" for student in ("0.6b", "1.7b") for teacher in ("4b", "8b")]
    assert {"bundled", *pairs, "qwen3-0.6b-4b-full", "qwen3-1.7b-8b-full"} == set(shipped_configs())
    for name in pairs:
        config = load_config(name)
        size, teacher = name.split("-")[1:]
        assert config.student == f"Qwen/Qwen3-{size.upper()}-Base"
        assert config.teacher == f"Qwen/Qwen3-{teacher.upper()}"
        recipe = (config.steps, config.batch_size, config.max_new_tokens, config.temperature, config.alpha)
        assert recipe == (1500, 32, 1024, 1.0, 10.0)


def test_flags_go_over_yaml_and_yaml_over_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("alpha: 5\nlr: 1e-4\nstudent: bundled\nfull_finetune: yes\n")
    args = config_parser("x", "y", Config).parse(
        ["--config", str(path), "--alpha", "2", "--no-full-finetune", "--top-k=20"]
    )
    config = load_config(args.config, **given(args))
    assert (config.alpha, config.lr, config.student, config.full_finetune, config.top_k) == (
        2.0,
        1e-4,
        "bundled",
        False,
        20,
    )


def test_a_saved_config_reads_back_equal(tmp_path):
    config = load_config("bundled", alpha=3, prompt_suffix="\nBox it: \\boxed{}", lr=1e-5)
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(path) == config


def test_none_unsets_a_setting_in_a_file_as_on_the_command_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("student: a\nteacher: b\neval_benchmarks: none\nlr: none\nweight: none\n")
    config = load_config(tmp_path / "mine.yaml")
    assert (
        config.eval_benchmarks is None and config.lr is None and config.weight == "none"
    )  # which is a choice of its own
    (tmp_path / "mine.yaml").write_text("student: a\nteacher: b\nsteps: none\n")
    with pytest.raises(UserError, match="steps: found 'none'"):
        load_config(tmp_path / "mine.yaml")


def test_every_field_has_a_sentence_and_a_flag():
    flags = {option for action in config_parser("x", "y", Config)._actions for option in action.option_strings}
    for name, field in Config.model_fields.items():
        assert field.description and len(field.description) > 15
        assert "--" + name.replace("_", "-") in flags


def test_the_flags_that_scripts_rely_on():
    names = """config alpha reward score steps seed output resume student teacher data engine lr batch-size max-new-tokens
        temperature top-p top-k stop-mode lora-rank lora-alpha full-finetune teacher-bits"""
    text = subprocess.run(
        [sys.executable, "-m", "poweropd_lite.train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert [name for name in names.split() if f"--{name} " not in text.replace(",", " ")] == []
    assert text.startswith("usage: python -m poweropd_lite.train [--FLAG VALUE ...]\n\nTrains a student")


@pytest.mark.parametrize("argument", ["--help", "--alpha=0", "--alhpa=3"])
def test_help_and_bad_flags_import_no_torch(argument):
    code = (
        "import sys, json\nfrom poweropd_lite.train import __main__ as train\nfrom poweropd_lite.base.errors import UserError\n"
        f"try: train.main([{argument!r}])\nexcept (SystemExit, UserError): pass\n"
        "print(json.dumps(sorted({'torch', 'transformers', 'numpy', 'peft'} & set(sys.modules))))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []


def test_default_learning_rate_follows_the_kind_of_training():
    assert load_config().learning_rate == 5e-6
    assert load_config(full_finetune=True).learning_rate == 5e-7
    assert load_config(full_finetune=True, lr=1e-3).learning_rate == 1e-3


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warmup_works_under_every_schedule(schedule):
    config = load_config(steps=14, warmup_steps=4, lr=1.0, lr_schedule=schedule)
    rates = [learning_rate(config, step) for step in range(14)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    expected = {"constant": [1.0, 1.0], "linear": [0.5, 0.1], "cosine": [0.5, 0.02447174]}
    assert [rates[9], rates[13]] == pytest.approx(expected[schedule])


def test_compute_dtype_follows_the_device():
    cpu = torch.device("cpu")
    assert compute_dtype(load_config().dtype, cpu) == torch.float32
    assert compute_dtype(load_config(dtype="bfloat16").dtype, cpu) == torch.bfloat16


@pytest.mark.parametrize(
    ("cuda", "flags", "student"),
    [
        (False, {}, "bundled"),
        (False, {"data": "mine.jsonl"}, "bundled"),
        (True, {}, "Qwen/Qwen3-0.6B-Base"),
        (True, {"max_new_tokens": "1024", "warmup_steps": "100"}, "Qwen/Qwen3-0.6B-Base"),
        (True, {"student": "a", "teacher": "b"}, "a"),
    ],
)
def test_the_config_without_config_follows_the_card(monkeypatch, cuda, flags, student):
    from poweropd_lite.train.__main__ import choose_config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert choose_config(None, flags).student == student


def test_a_file_that_names_no_models_changes_one_number_of_the_run_without_it(monkeypatch, tmp_path):
    from poweropd_lite.train.__main__ import choose_config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "mine.yaml").write_text("alpha: 5\n")
    config = choose_config(str(tmp_path / "mine.yaml"), {"seed": "3"})
    assert config == load_config("bundled", alpha=5, seed=3)


def test_none_unsets_what_may_be_unset():
    args = config_parser("x", "y", Config).parse(
        ["--config", "bundled", "--eval-benchmarks", "none", "--eval-every", "0"]
    )
    assert load_config(args.config, **given(args)).eval_benchmarks is None
