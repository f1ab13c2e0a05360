"""The benchmark against peers, in small shapes: it compares the same maths, and says what it leaves out."""

import importlib.util
import json
from pathlib import Path

import forked
import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "peers" / "run.py"
LEAN, OURS, LORA, PLAIN = (f"{name}, power" for name in ("lean, every weight", "ours, every weight", "ours, LoRA", "plain, every weight"))  # fmt: skip
KL, TRL = "ours, every weight, full_kl", "TRL DistillationTrainer, every weight"


def flags(*methods):
    return [word for name in methods for word in ("--method", name)]


def test_ours_and_lean_have_plains_loss_and_gradient(tmp_path):
    """float32, two ways of summing a thousand logits: rounding alone, relative to the gradient's length."""
    done = forked.run(str(RUN), "--here", "--tiny", *flags(LEAN, OURS, LORA, KL), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    apart = json.loads(done.stdout.splitlines()[-1])["apart"]
    assert set(apart) == {LEAN, OURS, LORA, KL}
    assert max(apart.values()) < 1e-4


def test_both_works_run_and_are_written_down_with_their_ratios(tmp_path):
    methods = [LEAN, OURS, PLAIN, TRL]
    done = forked.run(str(RUN), "--tiny", "--output", str(tmp_path), *flags(*methods), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    if importlib.util.find_spec("trl") is None:
        assert "TRL is not installed: its trainers are left out" in done.stdout
        methods.remove(TRL)
    for work in ("scoring", "whole"):
        facts = json.loads((tmp_path / f"cpu-{work}.json").read_text())
        assert set(facts["runs"]) == set(methods)
        (lean,), (ours,), (plain,) = (facts["runs"][name] for name in (LEAN, OURS, PLAIN))
        if work == "scoring":  # on the same rollouts
            assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-3) == lean["loss"]
        row = next(line for line in facts["table"] if OURS in line)
        assert f"| {ours['seconds'] / lean['seconds']:.2f} |" in row
        assert facts["command"].startswith("python benchmarks/peers/run.py") and facts["versions"]["torch"]
