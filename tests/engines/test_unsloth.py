"""The real Unsloth loads the student: it learns, full, 4-bit and LoRA alike, and its adapter is PEFT's."""

import json

import pytest
from conftest import PAIR, run_code, run_python, run_train, steps, summary


def test_the_pair_learns_through_unsloth(unsloth_run):
    output, run = unsloth_run
    facts = summary(run)
    assert "student loaded by unsloth (it is installed and runs here)" in output
    assert (facts["engine"], facts["loader"]) == ("loop", "unsloth")
    assert facts["accuracy_after"] > max(0.5, facts["accuracy_before"] + 0.2)
    assert all(line["parity/gap_max"] < 1e-4 for line in steps(run))


def test_unsloth_and_peft_train_the_same_adapter(unsloth_run, tmp_path):
    """One seed, two steps by PEFT: loss, gradient norm and log-probs are those of Unsloth's run."""
    _, run = unsloth_run
    flags = [
        *PAIR,
        "--engine",
        "loop",
        "--loader",
        "peft",
        "--steps",
        "2",
        "--eval-benchmarks",
        "none",
        "--output",
        "run",
    ]
    done = run_train(*flags, cwd=tmp_path, imported="peft")
    assert done.returncode == 0, done.stderr[-2000:]
    for ours, theirs in zip(steps(tmp_path / "run"), steps(run)[:2], strict=True):
        for name in ("loss", "optim/grad_norm", "logprob/student", "tokens/loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)


SCORE = """
import json, sys
import torch
how, adapter, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if how == "unsloth":
    from unsloth import FastLanguageModel
    model, _ = FastLanguageModel.from_pretrained(adapter, max_seq_length=256, dtype=torch.float32, load_in_4bit=False)
elif how == "peft":
    from peft import AutoPeftModelForCausalLM
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
if how == "vllm":
    import os
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    base = json.load(open(adapter + "/adapter_config.json"))["base_model_name_or_path"]
    llm = LLM(base, dtype="float32", enforce_eager=True, enable_lora=True, max_lora_rank=16, max_model_len=256,
              kv_cache_memory_bytes=2**28, max_num_seqs=4)
    out = llm.generate([{"prompt_token_ids": ids}], SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
                       use_tqdm=False, lora_request=LoRARequest("one", 1, adapter))
    logprobs = [line[token].logprob for line, token in zip(out[0].prompt_logprobs[1:], ids[1:])]
else:
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
print("RESULT " + json.dumps({"logprobs": logprobs}))
"""


@pytest.mark.parametrize("trained_by", ["unsloth", "peft"])
def test_peft_unsloth_and_vllm_give_one_adapter_the_same_logprobs(trained_by, unsloth_run, vllm_run, tmp_path):
    """The adapter of either loader opens with the other and in vLLM, each in a process of its own."""
    _, run = unsloth_run if trained_by == "unsloth" else vllm_run
    ids = list(range(40, 100))
    scores = {
        how: run_code(SCORE, how, str(run / "adapter"), json.dumps(ids), cwd=tmp_path, imported=how)["logprobs"]
        for how in ("peft", "unsloth", "vllm")
    }
    for how in ("unsloth", "vllm"):
        gaps = [abs(a - b) for a, b in zip(scores["peft"], scores[how], strict=True)]
        assert len(gaps) == 59 and max(gaps) < 1e-4, (how, max(gaps))


@pytest.mark.parametrize("settings", [["--student-bits", "4"], ["--full-finetune", "--lr", "3e-4"]], ids=" ".join)
def test_4_bit_and_full_fine_tuning_through_unsloth_are_pefts(settings, tmp_path):
    """Three steps by either loader, same seed: the same losses and gradient norms."""
    runs = {}
    for loader in ("unsloth", "peft"):
        flags = [
            *PAIR,
            "--eval-benchmarks",
            "none",
            "--engine",
            "loop",
            "--loader",
            loader,
            "--steps",
            "3",
            "--output",
            loader,
        ]
        done = run_train(*flags, *settings, cwd=tmp_path, imported=loader)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        runs[loader] = steps(tmp_path / loader)
    for ours, theirs in zip(*runs.values(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2, abs=2e-4)
        assert ours["optim/grad_norm"] == pytest.approx(theirs["optim/grad_norm"], rel=2e-2)


def test_auto_takes_both_and_doctor_says_so(tmp_path):
    done = run_python("-m", "poweropd_lite.doctor", "--env", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "loader        unsloth (it is installed and runs here)" in done.stdout
    assert "engine        vllm (it is installed and runs here)" in done.stdout
    assert "0.32.0 (CPU build)" in done.stdout
    flags = [*PAIR, "--steps", "2", "--eval-benchmarks", "none", "--output", "run"]
    done = run_train(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    facts = summary(tmp_path / "run")
    assert (facts["engine"], facts["loader"]) == ("vllm", "unsloth")
    assert all(line["parity/gap_max"] < 1e-4 for line in steps(tmp_path / "run"))


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    from poweropd_lite.models.loading import model_path

    folder = tmp_path / "student"
    copytree(model_path("bundled", "student"), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    flags = [*PAIR, "--eval-benchmarks", "none", "--engine", "loop", "--loader", "unsloth", "--student", str(folder)]
    done = run_train(*flags, cwd=tmp_path, imported="unsloth")
    assert done.returncode == 2, done.stdout
    assert "lack 1 tensors of its config (model.layers.1.mlp.down_proj.weight, ...)" in done.stderr
