"""What a run's summary says to type next can be typed."""

import shlex

import pytest
import torch
from conftest import quick_flags, run_python, run_train

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.models.loading import load_causal_lm
from poweropd_lite.models.saved import settle_adapter
from poweropd_lite.plan.__main__ import main as plan_command


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """A run whose folder a shell would cut in two, of a reward with settings that no other has."""
    folder = tmp_path_factory.mktemp("next")
    more = ["--reward", "f_fkl", "--reward-settings", '{"cap": 5.0}', "--output", "it's mine"]
    done = run_train("--config", "bundled", *quick_flags(steps=1, eval_every=0), *more, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, dict(line.strip().split(":", 1) for line in done.stdout.split("next:\n")[1].splitlines())


def test_a_folder_is_quoted_and_a_comparison_that_would_be_refused_is_not_offered(said):
    folder, following = said
    assert load_config(folder / "it's mine" / "config.yaml").reward_settings == {"cap": 5.0}
    assert sorted(following) == ["evaluate", "export", "see it", "talk to it", "train on", "use it"]
    for name, words in (("see it", ["it's mine"]), ("train on", ["--resume", "it's mine", "--steps", "2"])):
        assert shlex.split(following[name])[3:] == words
    assert following["use it"].strip() == """peft.AutoPeftModelForCausalLM.from_pretrained("it's mine/adapter")"""


def test_the_other_half_of_a_comparison_offers_no_third(tmp_path):
    done = run_train("--config", "bundled", *quick_flags(steps=1, eval_every=0), "--output", "a-other", cwd=tmp_path)
    assert done.returncode == 0 and "compare:" not in done.stdout and "see it:" in done.stdout


def test_the_command_that_trains_on_trains_on(said):
    folder, following = said
    done = run_python(*shlex.split(following["train on"])[1:], cwd=folder)
    assert done.returncode == 0 and "finished at step 2 of 2" in done.stdout, done.stderr


def test_commands_in_refusals_and_beside_what_was_written_are_quoted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"poweropd_lite\.export 'my runs/a' --to merged-16bit, and --student"):
        load_config("bundled", adapter="my runs/a", full_finetune=True)
    (tmp_path / "my runs" / "adapter").mkdir(parents=True)
    for name in ("config.yaml", "adapter/adapter_config.json"):
        (tmp_path / "my runs" / name).write_text("{}")
    with pytest.raises(UserError, match="type --adapter 'my runs/adapter'"):
        settle_adapter(load_config("bundled", adapter="my runs"), print)
    with pytest.raises(UserError, match=r"poweropd_lite\.export 'my runs' --to merged-16bit, and type --teacher"):
        load_causal_lm("my runs", "teacher", torch.float32)
    assert plan_command(["--config", "bundled", "--steps", "5", "--gpu", "cpu", "--output", "my plan.yaml"]) == 0
    command = capsys.readouterr().out.split("my plan.yaml: ")[1]
    assert shlex.split(command) == ["python", "-m", "poweropd_lite.train", "--config", "my plan.yaml"]
    assert load_config("my plan.yaml").steps == 5
