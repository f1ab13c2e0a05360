"""The audit: its numbers against float64 by hand and by plain loops, planted faults, streaming, exit codes, stopping."""

import json
import math
import signal
import subprocess
import sys

import forked
import pytest
import torch
from conftest import DATA
from exact import TINY, drawn_rollouts, float64_model, nf4_model, token_logprobs
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from poweropd_lite.base.config import load_config
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import TRAINING, Draws
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.problems.prompts import step_indices
from poweropd_lite.rehearse.stats import intervals, log_prob_error, reward_error

R = torch.tensor([0.5, -0.5, 0.2, 0.0, -0.8], dtype=torch.float64)
S = torch.tensor([0.4, 0.1, 0.2, 0.1, 0.0], dtype=torch.float64)


def run_audit(*flags, cwd):
    data = [] if "--data" in flags else ["--data", DATA]
    return forked.run("-m", "poweropd_lite.audit", *flags, *data, cwd=cwd)


def test_errors_of_rewards_worked_by_hand():
    """Sum |r| is 2; the second token flips (0.5 of it), the fifth vanishes (0.8), the fourth appears; |s - r| sums to 1.6."""
    found = reward_error(R, S)
    assert found["flipped_mass"] == pytest.approx(0.25)
    assert found["vanished_mass"] == pytest.approx(0.4)
    assert (found["flipped_share"], found["vanished_share"], found["appeared_share"]) == (0.2, 0.2, 0.2)
    assert found["relative_error"] == pytest.approx(1.6 / 2)
    assert found["mean_abs_error"] == pytest.approx(1.6 / 5) and found["mean_abs_reward"] == pytest.approx(2 / 5)
    # Means -0.12 and 0.16; products of deviations .1488 + .0228 + .0128 - .0072 + .1088, squares 1.108 and .092
    assert found["correlation"] == pytest.approx(0.286 / math.sqrt(1.108 * 0.092), abs=1e-12)


def test_errors_of_log_probs_worked_by_hand():
    found = log_prob_error(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -2.0]))
    assert found == {
        "mean": pytest.approx(0.5 / 3),
        "mean_abs": pytest.approx(0.5),
        "p95_abs": pytest.approx(0.95),  # between 0.5 and 1, nine tenths of the way
        "max_abs": 1.0,
    }


def test_what_is_not_defined_is_none():
    zero = torch.zeros(5, dtype=torch.float64)
    assert reward_error(zero, S)["flipped_mass"] is None and reward_error(zero, S)["correlation"] is None
    assert reward_error(R, zero)["correlation"] is None and reward_error(R, zero)["vanished_mass"] == pytest.approx(1.0)
    assert intervals(zero, S, [2, 3], 100, 0) == {"flipped_mass": None, "correlation": None}


def test_intervals_are_those_of_whole_rollouts_drawn_again():
    """Against the bootstrap written out: the same draws of rollouts, their tokens joined, the plain formulas."""
    g = torch.Generator().manual_seed(3)
    lengths = [4, 0, 7, 3, 6]
    r = torch.randn(20, generator=g, dtype=torch.float64)
    s = r + 0.8 * torch.randn(20, generator=g, dtype=torch.float64)
    parts = list(zip(r.split(lengths), s.split(lengths), strict=True))
    drawn = torch.randint(5, (200, 5), generator=torch.Generator().manual_seed(11))
    flips, correlations = [], []
    for line in drawn.tolist():
        x, y = (torch.cat([parts[i][side] for i in line]) for side in (0, 1))
        flips.append((x.abs() * (x * y < 0)).sum() / x.abs().sum())
        correlations.append(torch.corrcoef(torch.stack([x, y]))[0, 1])
    marks = torch.tensor([0.025, 0.975], dtype=torch.float64)
    found = intervals(r, s, lengths, 200, 11)
    assert found["flipped_mass"] == pytest.approx(torch.quantile(torch.stack(flips), marks).tolist(), abs=1e-12)
    assert found["correlation"] == pytest.approx(torch.quantile(torch.stack(correlations), marks).tolist(), abs=1e-9)


def single(value):
    """As float32, in which training computes rewards: 1e-251 is 0 there, which has no sign."""
    return torch.tensor(value, dtype=torch.float32).item()


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """An audit of 40 rollouts by the real command: its folder and what it printed."""
    cwd = tmp_path_factory.mktemp("audited")
    done = run_audit("--rollouts", "40", "--json", "--output", "report", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "report", done


def test_the_command_against_float64_by_plain_loops(audited):
    """Log-probs by transformers in float64, NF4 by dequantised weights, rewards and sums token by token in Python."""
    folder, done = audited
    report = json.loads(done.stdout)
    assert report.pop("folder") == "report" and report == json.loads((folder / "audit.json").read_text())
    _, steps = drawn_rollouts(load_config("bundled", data=DATA), 40)
    rollouts = [r for step in steps for r in step]
    exact, rounded, student = (token_logprobs(m, rollouts) for m in (float64_model("teacher"), nf4_model(), float64_model("student")))  # fmt: skip
    assert report["tokens"] == len(exact) and report["rollouts"] == 40
    found = report["candidates"]["4-bit teacher"]
    error = (rounded - exact).abs()
    assert found["log_prob_error"]["mean_abs"] == pytest.approx(error.mean().item(), rel=1e-3)
    assert found["log_prob_error"]["max_abs"] == pytest.approx(error.max().item(), rel=1e-3)
    for alpha in (0.1, 1.0, 10.0, 500.0):
        mass = flipped = off = 0.0
        pairs = []
        for p, rough, q in zip(exact.tolist(), rounded.tolist(), student.tolist(), strict=True):
            r, s = (single(math.exp(alpha * x)) - single(math.exp(alpha * q)) for x in (p, rough))
            pairs.append((r, s))
            mass, off = mass + abs(r), off + abs(s - r)
            flipped += abs(r) if r * s < 0 else 0.0
        numbers = found["rewards"][f"power {alpha:g}"]
        assert numbers["flipped_mass"] == pytest.approx(flipped / mass, rel=1e-2, abs=1e-6)
        assert numbers["relative_error"] == pytest.approx(off / mass, rel=1e-3)
        correlation = torch.corrcoef(torch.tensor(pairs, dtype=torch.float64).T)[0, 1].item()
        assert numbers["correlation"] == pytest.approx(correlation, abs=1e-5)


def test_what_a_reader_finds(audited):
    folder, done = audited
    report = json.loads((folder / "audit.json").read_text())
    there = sorted(report["candidates"] | report["not_audited"])
    assert there == ["16-bit teacher", "4-bit teacher", "8-bit teacher", "student bfloat16"]
    assert set(report["not_audited"]) <= {"8-bit teacher"}  # LLM.int8 on a CPU is bitsandbytes' to offer
    assert report["verdict"]["sound"] and report["verdict"]["line"].startswith("yes: 4-bit teacher at power 10: ")
    whose = {name: (c["model"], c["bits"]) for name, c in report["candidates"].items()}
    assert whose["4-bit teacher"] == ("teacher", 4) and whose["student bfloat16"] == ("student", 16)
    own = report["candidates"]["4-bit teacher"]["rewards"]["power 10"]
    assert own["passes"] and (own["reward"], own["alpha"]) == ("power", 10.0)
    text = (folder / "audit.md").read_text()
    line = next(line for line in text.split("## 4-bit teacher")[1].splitlines() if line.startswith("| power 10 |"))
    bounds = [*own["interval"]["flipped_mass"], *own["interval"]["correlation"]]
    values = [value for key, value in own.items() if isinstance(value, float) and key != "alpha"] + bounds
    assert len(values) == 13 and line == "| power 10 | " + " | ".join(f"{value:.6g}" for value in values) + " |"
    assert f"- {report['verdict']['line']}" in text
    assert (folder / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert "student float32  40/40" in done.stderr and "files   report: audit.json  audit.md  audit.png" in done.stderr
    errors = {name: rows["log_prob_error"]["mean_abs"] for name, rows in report["candidates"].items()}
    assert 0.01 < errors.get("8-bit teacher", 0.02) < errors["4-bit teacher"] / 3
    # bfloat16 by transformers alone: hidden states in bfloat16, the head's products in float32
    _, steps = drawn_rollouts(load_config("bundled", data=DATA), 40)
    rollouts = [r for step in steps for r in step]
    for name, role in (("16-bit teacher", "teacher"), ("student bfloat16", "student")):
        error = (half_logprobs(role, rollouts) - token_logprobs(float64_model(role), rollouts)).abs().mean().item()
        assert errors[name] == pytest.approx(error, rel=0.3), name


def half_logprobs(role, rollouts):
    model = AutoModelForCausalLM.from_pretrained(TINY / role, dtype=torch.bfloat16).eval()
    found = []
    with torch.no_grad():
        for r in rollouts:
            kept = r.completion_ids[: len(r.completion_ids) - (r.finish == "stop")]
            whole = torch.tensor([[*r.prompt_ids, *kept]])
            hidden = model.model(whole).last_hidden_state[0, len(r.prompt_ids) - 1 : -1]
            logits = hidden.double() @ model.lm_head.weight.double().T
            found.append(logits.log_softmax(-1).gather(-1, torch.tensor(kept)[:, None]).squeeze(-1))
    return torch.cat(found)


def test_rollouts_are_those_that_training_draws_first():
    """Two steps of a run's first rollouts, by hand: the prompts of the step, and its own random numbers."""
    from poweropd_lite.run.session import load_sampler, prepare

    config = load_config(
        "bundled", data=DATA, batch_size=8, seed=5, temperature=0.9, eval_benchmarks=None, eval_every=0
    )
    ready = prepare(config, print)
    _, engine = load_sampler(ready, print)
    engine.sync()
    theirs = []
    for step in (0, 1):
        prompts = [ready.prompts[i].ids for i in step_indices(len(ready.prompts), 8, 5, step)]
        draws = Draws(5, TRAINING, step, tuple(range(8)))
        sampling = Sampling(0.9, forbidden=torch.tensor(ready.pair.forbidden))
        theirs.append(engine.sample(prompts, draws, sampling, config.max_new_tokens))
    _, ours = drawn_rollouts(config, 12)  # the second batch is cut short
    assert [[r.completion_ids for r in step] for step in ours] == [
        [r.completion_ids for r in step] for step in (theirs[0], theirs[1][:4])
    ]
    assert [r.prompt_ids for r in ours[1]] == [r.prompt_ids for r in theirs[1][:4]]


def outliers(folder):
    """Scales one channel of each norm by 1/64 and the matrices' columns behind it by 64: the same model, and bad for NF4."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in [n for n in weights if n.endswith("layernorm.weight")]:
        layer = name.rsplit(".", 2)[0]
        behind = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        if "post_attention" in name:
            behind = ("mlp.gate_proj", "mlp.up_proj")
        channels = slice(None, None, 16)
        weights[name][channels] /= 64
        for matrix in behind:
            weights[f"{layer}.{matrix}.weight"][:, channels] *= 64
    save_file(weights, file, metadata={"format": "pt"})


def test_a_teacher_that_four_bits_spoil_is_found(other, tmp_path):
    """Powers of two: the full-precision model says what it said, bit for bit; NF4's blocks lose all but the outliers."""
    teacher = other("teacher", outliers)
    flags = ["--rollouts", "32", "--teacher", teacher, "--student", "bundled", "--config", "bundled"]
    done = run_audit(*flags, "--output", "report", cwd=tmp_path)
    report = json.loads((tmp_path / "report" / "audit.json").read_text())
    assert done.returncode == 1, done.stdout + done.stderr
    verdict = report["verdict"]
    by_bits = {bits: report["candidates"][f"{bits}-bit teacher"]["rewards"] for bits in (4, 16)}
    assert not verdict["sound"] and by_bits[4]["power 10"]["correlation"] < 0.9
    assert "no: 4-bit teacher at power 10" in done.stdout and "type --teacher-bits 16" in done.stdout
    assert not any(row["passes"] for row in by_bits[4].values()) and by_bits[16]["power 10"]["passes"]
    assert f"{100 * by_bits[4]['power 10']['flipped_mass']:.2f}%!" in done.stdout  # marked in the table
    exact = token_logprobs(
        float64_model("teacher"), [r for s in drawn_rollouts(load_config("bundled", data=DATA), 32)[1] for r in s]
    )
    plain = report["candidates"]["16-bit teacher"]["rewards"]["power 10"]["mean_abs_reward"]
    assert len(exact) == report["tokens"] and plain > 0.3  # the pair is otherwise the bundled one
    # And the way out that it names is sound.
    done = run_audit(*flags, "--teacher-bits", "16", "--output", "sixteen", cwd=tmp_path)
    assert done.returncode == 0 and "yes: 16-bit teacher at power 10" in done.stdout


def test_limits_are_the_users(tmp_path):
    done = run_audit("--rollouts", "16", "--min-correlation", "0.99999", "--output", "report", cwd=tmp_path)
    assert done.returncode == 1 and "at least 0.99999" in done.stdout
    report = json.loads((tmp_path / "report" / "audit.json").read_text())
    assert not any(row["passes"] for row in report["candidates"]["4-bit teacher"]["rewards"].values())
    assert "16 rollouts are too few to be sure of anything: type --rollouts 256" in done.stdout


def test_layers_that_do_not_fit_are_streamed_and_say_the_same(tmp_path):
    """A teacher of 7.1 MiB in float32 that may take 6.3: two layers of four (1.7 MiB each) come from the disk, each at its turn."""
    flags = ["--rollouts", "16", "--json"]
    whole = run_audit(*flags, "--output", "whole", cwd=tmp_path)
    parts = run_audit(*flags, "--output", "parts", "--reference-gib", "0.0062", cwd=tmp_path)
    assert whole.returncode == parts.returncode == 0, parts.stderr
    one, other = json.loads(whole.stdout), json.loads(parts.stdout)
    assert one["reference"]["streamed_layers"] == 0 and other["reference"]["streamed_layers"] == 2
    assert "2 layers of the 32-bit teacher are streamed" in parts.stderr
    assert one["candidates"] == other["candidates"]


def test_where_layers_go_on_a_card(monkeypatch):
    """Four layers of 1.7 MiB and 0.4 MiB of the rest in float32; one layer's room is kept for the streamed one at hand."""
    from poweropd_lite.models import offload

    card, config, mib = torch.device("cuda"), load_config("bundled", data=DATA), 2**20
    sizes = [p.numel() * 4 for name, p in float64_model("teacher").named_parameters() if ".layers.0." in name]
    layer = sum(sizes)

    def places(room, host=10**12):
        monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {"cpu": host + offload._SPARE})
        return offload.layer_map(config.teacher, card, torch.float32, room)

    everything = places(4 * layer + mib)
    assert set(everything.values()) == {0} and offload.streamed(everything, card) == 0
    some = places(3 * layer + mib)
    assert [some[f"model.layers.{i}"] for i in range(4)] == [0, 0, "cpu", "cpu"]
    assert some["model.embed_tokens"] == some["model.norm"] == some["lm_head"] == 0
    full_host = places(3 * layer + mib, host=layer + 1)
    assert [full_host[f"model.layers.{i}"] for i in range(4)] == [0, 0, "cpu", "disk"]
    half = offload.layer_map(config.teacher, card, torch.bfloat16, 2 * layer + mib)
    assert offload.streamed(half, card) == 0
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (3 * layer + mib + offload._SPARE, 10**12))
    assert offload.layer_map(config.teacher, card, torch.float32) == full_host


def test_a_teacher_that_is_quantised_already_is_refused(tmp_path):
    """Its own 4 bits would be the reference, and every error 0."""
    from transformers import AutoTokenizer

    config = load_config("bundled", data=DATA)
    load_teacher(config.teacher, 4, torch.device("cpu"), torch.float32).model.save_pretrained(tmp_path / "nf4")
    AutoTokenizer.from_pretrained(TINY / "teacher").save_pretrained(tmp_path / "nf4")
    done = run_audit("--config", "bundled", "--teacher", "nf4", "--rollouts", "8", cwd=tmp_path)
    assert done.returncode == 2 and "the files of the teacher nf4 are quantised already" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["nf4"]


def test_more_values_than_torch_sorts():
    """torch.quantile refuses more than 2^24 values; 4,096 long rollouts have more tokens."""
    from poweropd_lite.rehearse.stats import reward_facts

    many = torch.zeros(2**24 + 20, dtype=torch.float64)
    many[::10] = 1.0
    assert log_prob_error(torch.zeros_like(many), many)["p95_abs"] == 1.0
    assert reward_facts(many, None, None, 0.01)["p95"] == 1.0


def test_other_rewards_are_judged_too(tmp_path):
    done = run_audit(
        "--rollouts", "16", "--reward", "full_kl", "--stop-mode", "relabel", "--output", "kl", cwd=tmp_path
    )
    assert done.returncode in (0, 1) and "full_kl is judged by log_ratio" in done.stdout
    assert "4-bit teacher at log_ratio" in done.stdout and "(full_kl is judged by log_ratio)" in done.stdout
    done = run_audit("--rollouts", "16", "--reward", "zscore", "--output", "z", cwd=tmp_path)
    assert "4-bit teacher at zscore" in done.stdout and "zscore *" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rollouts", "1"], ["rollouts", "greater than or equal to 2"]),
        (["--rolouts", "9"], ["did you mean '--rollouts'"]),
        (["--output", "full"], ["full is not empty", "--output"]),
        (["--output", "file"], ["file is a file", "--output"]),
        (["--student", "bundled", "--teacher", "no/such-folder/here"], ["teacher", "--teacher"]),
        (["--teacher-bits", "8"], ["LLM.int8", "--teacher-bits 4, 16 or 32"]),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, flags, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    done = run_audit(*flags, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_and_nothing_is_written(tmp_path, number, code):
    """The signal comes when the first of 128 batches is sampled."""
    signalled = """
import os, sys
from poweropd_lite.audit.__main__ import main
from poweropd_lite.cli import run_command
from poweropd_lite.engines.loop import LoopEngine
real, sampled = LoopEngine.sample, []
def sample(*args):
    if not sampled:
        os.kill(os.getpid(), int(sys.argv[1]))
    sampled.append(args)
    assert len(sampled) < 3
    return real(*args)
LoopEngine.sample = sample
run_command(lambda: main(sys.argv[2:]))
"""
    done = forked.run("-c", signalled, str(int(number)), "--rollouts", "4096", cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert "stopped; nothing is written" in done.stdout and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_and_its_adapter_are_no_whole_models(trained, tmp_path):
    """The folder that a user has in hand: what to do with it is said, and works (export's own tests)."""
    for name in ("run", "run/adapter"):
        done = run_audit("--config", "bundled", "--student", str(trained / name), "--rollouts", "8", cwd=tmp_path)
        assert done.returncode == 2 and "not a whole model; make one of it first" in done.stderr
        assert f"python -m poweropd_lite.export {trained / 'run'} --to merged-16bit" in done.stderr


def test_reports_are_named_after_what_they_are_of(tmp_path):
    done = run_audit("--rollouts", "8", "--alpha", "0.5", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["folder"] == "audits/bundled-4bit-power0.5" and (tmp_path / report["folder"] / "audit.json").is_file()
    assert report["made"]["poweropd_lite"] and report["made"]["date"].startswith("20")


def test_help_is_quick_and_imports_no_torch():
    for command in ("audit", "advise"):
        code = f"import sys; from poweropd_lite.{command}.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0 and "--rollouts" in done.stdout, done.stderr
