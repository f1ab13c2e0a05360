"""The reproduce command's folders, planted: a run that goes on, a page without its teacher, a refusal, dropped steps."""

import json
import re
import shlex

import forked
import pytest
import torch
from peft import LoraConfig, get_peft_model
from planted_queue import plant, planted, rows_of

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed, dump_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.cli import config_parser, given
from poweropd_lite.method.update import Gradient, take_step
from poweropd_lite.models.loading import load_causal_lm
from poweropd_lite.models.saved import settle_adapter
from poweropd_lite.reproduce.forecast import check_fit
from poweropd_lite.reproduce.grid import run_config
from poweropd_lite.reproduce.pages import write_pages
from poweropd_lite.reproduce.state import Forecast
from poweropd_lite.reproduce.tables import write_tables
from poweropd_lite.reproduce.work import next_command


def test_a_run_from_an_adapter_goes_on_and_another_run_is_refused(tmp_path, monkeypatch):
    """Its config.yaml has the adapter's own rank 4, alpha 6 and modules, where its pair has rank 32 and alpha 64."""
    monkeypatch.chdir(tmp_path)
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    get_peft_model(load_causal_lm("bundled", "student", torch.float32), lora).save_pretrained("sft")
    (tmp_path / "mine.yaml").write_text("student: bundled\nteacher: bundled\ndata: bundled\nadapter: sft\n")
    (tmp_path / "q").mkdir()
    queue = planted(tmp_path / "q", pairs="mine.yaml,bundled", rewards="tanh", seeds="0", benchmarks="bundled")
    task, plain = (queue.tasks[f"{pair}-tanh-plain-seed0"] for pair in ("mine", "bundled"))
    begun = settle_adapter(run_config(queue.pairs["mine"], task), print)  # as train writes it down
    assert (begun.lora_rank, begun.lora_alpha) == (4, 6)
    assert (begun.lora_targets, begun.modules_to_save) == ("down_proj,q_proj", "lm_head")
    for which in (task, plain):
        queue.run_folder(which).mkdir(parents=True)
    folder, other = queue.run_folder(task), queue.run_folder(plain)
    (folder / "config.yaml").write_text(dump_yaml(begun))
    assert next_command(queue, task) == ["poweropd_lite.train", "--resume", str(folder)]
    for values, words in (({"adapter": "dpo"}, "(adapter dpo there, sft here)"), ({"seed": 7}, "(seed 7 there, 0 here)")):  # fmt: skip
        (folder / "config.yaml").write_text(dump_yaml(changed(begun, **values)))
        with pytest.raises(UserError, match=re.escape(f"holds another run {words}; move it away")):
            next_command(queue, task)
    (other / "config.yaml").write_text(dump_yaml(changed(run_config(queue.pairs["bundled"], plain), lora_rank=8)))
    with pytest.raises(UserError, match="lora_rank 8 there, 16 here"):
        next_command(queue, plain)


def test_a_page_is_without_a_teacher_of_other_problems_than_trainings_own(tmp_path, monkeypatch):
    """docs/reproduce.md's mine.yaml keeps 200 prompts out for training's own evaluation; all is scored on my-test.jsonl."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-test.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    for name in ("mine", "other"):
        (tmp_path / f"{name}.yaml").write_text("student: bundled\nteacher: bundled\ndata: bundled\nhold_out: 200\n")
    (tmp_path / "q/logs").mkdir(parents=True)
    queue = planted(tmp_path / "q", pairs="mine.yaml,other.yaml", rewards="tanh", seeds="0", benchmarks="my-test.jsonl")
    queue.pairs["other"] = changed(queue.pairs["other"], hold_out=0, eval_benchmarks="my-test.jsonl")
    own = {"eval/avg@8": 0.3, "eval/pass@8": 0.5, "eval/greedy": 0.4, "eval/length": 40.0, "eval/stop_share": 1.0}
    for pair in ("mine", "other"):
        evaluated = {"step": 1, **own, "time/evaluate": 2.0}
        plant(queue, f"{pair}-tanh-plain-seed0", {"my-test": (0.5, 0.75, 40)}, lines=[evaluated])
    plant(queue, "bundled-teacher", {"my-test": (0.6, 0.8, 40)})
    said = []
    assert write_pages(queue, said.append) == ["report/mine/index.html", "report/other/index.html"], said
    why = "it was scored on my-test, and training's own evaluation is of held-out"
    assert said[0] == f"{tmp_path}/q/report/mine is without teacher and base: {why}"
    assert [line.split(" ")[0] for line in said[1:]] == ["mine:", "other:"]
    mine, other = (json.loads((tmp_path / f"q/report/{pair}/report.json").read_text()) for pair in ("mine", "other"))
    assert mine["teacher"] is None and other["teacher"]["accuracy"] == 0.6
    rows = {row["name"]: row["values"] for row in mine["table"]}
    assert rows["Avg@8 at the end"] == [0.3] and rows["Avg@8 on my-test by evaluate at step 1500"] == [0.5]


def test_a_refusal_names_flags_and_a_command_that_work(tmp_path):
    """What plan proposes, as train reads it; and the bundled pair on a card of 1 GB, whose plan is then asked by hand."""
    task = planted(tmp_path, preset="smoke").tasks["bundled-power10-plain-seed0"]
    changes = {"teacher_offload": True, "full_finetune": False, "lr": None, "token_budget": 2048}
    with pytest.raises(UserError) as error:
        check_fit(task, Forecast("a card", 30 * 2**30, 23 * 2**30, False, changes, 1.0, 1.0, None), 1, "--gpu 24")
    flags = re.search(r"it does with (.*) \(python -m poweropd_lite\.plan --gpu 24 says more\)", str(error.value))[1]
    assert flags == "--teacher-offload --no-full-finetune --lr none --token-budget 2048"
    assert given(config_parser("train", "", Config).parse(shlex.split(flags))) == changes | {"token_budget": "2048"}

    (tmp_path / "mine.yaml").write_text("student: bundled\nteacher: bundled\ndata: bundled\n")
    asked = ["--pairs=./mine.yaml", "--rewards=power", "--alphas=5", "--seeds=0", "--max-new-tokens=4000"]
    refused = forked.run("-m", "poweropd_lite.reproduce", *asked, "--dry-run", "--gpu=1", "--output=new", cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    found = re.search(r"it needs ([\d.]+) GiB, .* \(python (-m poweropd_lite\.plan .*) says more\)", refused.stderr)
    assert found[2].startswith("-m poweropd_lite.plan --config ./mine.yaml --gpu 1 --alpha 5 ")
    by_hand = forked.run(*shlex.split(found[2]), "--json", cwd=tmp_path)
    assert by_hand.returncode == 1, by_hand.stderr  # it does not fit
    assert f"{json.loads(by_hand.stdout)['needed_bytes'] / 2**30:.1f}" == found[1]


def test_a_step_with_no_token_in_the_loss_is_counted(tmp_path):
    """Three steps of 1, 3 and 8 s and 9.5, 10.5 and 12 GiB; the last has no gradient, as train writes it down."""
    queue, name = planted(tmp_path, preset="smoke"), "bundled-power10-plain-seed0"
    dropped = take_step(None, None, Gradient(0, torch.zeros(()), None, {"tokens/loss": 0}))
    assert dropped == {"tokens/loss": 0, "optim/skipped": 1.0}
    last = {"step": 3, **dropped, "time/step": 8.0, "memory/peak_gib": 12.0}
    evaluated = {"step": 3, "eval/avg@8": 0.5, "time/evaluate": 2.0}
    plant(queue, name, {"bundled": (0.5, 0.6, 40)}, steps=[(0.25, 1.0), (0.75, 3.0)], lines=[last, evaluated])
    write_tables(queue)
    (cost,) = rows_of(tmp_path / "cost.csv")
    assert [cost[key] for key in ("steps", "seconds_median", "seconds_p95", "peak_gib")] == ["3", "3", "8", "12"]
    table = {(r["row"], r["measure"]): r["mean"] for r in rows_of(tmp_path / "tables.csv")}
    assert table["power 10", "largest_grad_norm"] == "0.75"
    assert "1 steps of power 10 were dropped (optim/skipped in metrics.jsonl)." in (tmp_path / "tables.md").read_text()
