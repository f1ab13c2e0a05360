"""The audit's verdict on made-up numbers, and how a report is written."""

import pytest
import torch

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.rehearse.audit import compare
from poweropd_lite.rehearse.audit_report import judge
from poweropd_lite.rehearse.report import check_out, write_folder
from poweropd_lite.rehearse.scored import Drawn
from poweropd_lite.rehearse.settings import AuditConfig


def row(reward, alpha, flipped=0.0, correlation=1.0, interval=(0.0, 0.0), between=(1.0, 1.0), passes=True):
    bounds = {"flipped_mass": interval and list(interval), "correlation": between and list(between)}
    errors = {"flipped_mass": flipped, "correlation": correlation, "interval": bounds}
    return {"reward": reward, "alpha": alpha, "passes": passes} | errors


def made_up(own=None, **changes):
    """A report of two alphas: the config's 4-bit teacher at power 10 has the numbers of `own`, all else is perfect."""
    good = {"power 1": row("power", 1.0), "power 10": row("power", 10.0)}
    own = {"flipped": 0.01, "correlation": 0.99, "interval": (0.005, 0.02), "between": (0.98, 0.995)} | (own or {})
    rewards = {4: good | {"power 10": row("power", 10.0, **own)}, 8: good, 16: good}
    candidates = {
        f"{bits}-bit teacher": {"model": "teacher", "bits": bits, "rewards": rewards[bits]} for bits in rewards
    }
    report = {
        "own": "power 10", "device": "cpu", "rollouts": 256, "reference": {"streamed_layers": 0},
        "settings": {"max_flipped_mass": 0.05, "min_correlation": 0.95}, "candidates": candidates, "not_audited": {},
        "config": {"reward": "power", "teacher_bits": 4},
    }  # fmt: skip
    return report | changes


def test_the_verdict_on_made_up_numbers():
    sound = judge(made_up())
    assert sound["sound"] and not sound["uncertain"] and sound["note"] == ""
    assert sound["line"] == (
        "yes: 4-bit teacher at power 10: 1.00% (95%: 0.50% to 2.00%) of the reward mass changes its sign, limit 5%; "
        "correlation 0.990 (95%: 0.980 to 0.995), at least 0.95"
    )
    flips = judge(made_up({"flipped": 0.06, "interval": (0.055, 0.07), "passes": False}))
    assert not flips["sound"] and not flips["uncertain"] and flips["line"].startswith("no: ") and flips["note"] == ""
    assert flips["line"].endswith("; type --teacher-bits 16 (if plan says that it fits), or --alpha 1")
    assert judge(made_up({"interval": (0.005, 0.06)}))["uncertain"]  # the limit is inside
    assert judge(made_up({"between": None}))["uncertain"]  # there is no interval
    few = judge(made_up(rollouts=8))
    assert few["uncertain"] and few["note"].startswith("8 rollouts are too few")
    on_a_card = judge(made_up({"flipped": 0.06, "passes": False}, device="cuda"))
    assert "; type --teacher-bits 8 " in on_a_card["line"]
    close = judge(made_up({"flipped": 0.0500004, "interval": (0.04, 0.06), "passes": False}))
    assert not close["sound"] and "5.000040%" in close["line"] and "limit 5%" in close["line"]
    assert close["note"].endswith("type --rollouts 1024")


def test_both_limits_decide():
    """Log ratios 2, -2, 1, -1 against 2, -2, -1, 1: 2 of the mass 6 flips; products sum to 6, squares to 10 each."""
    log_q, reward = torch.zeros(4), load_config("bundled", reward="log_ratio")
    reference, other = torch.tensor([2.0, -2.0, 1.0, -1.0]), torch.tensor([2.0, -2.0, -1.0, 1.0])

    def passes(**limits):
        found = compare(reward, (reference, log_q), (other, log_q), Drawn([], (2, 2), (4,)), AuditConfig(**limits))
        assert found["flipped_mass"] == pytest.approx(1 / 3) and found["correlation"] == pytest.approx(0.6)
        assert found["reward"] == "log_ratio" and found["alpha"] is None
        return found["passes"]

    assert passes(max_flipped_mass=0.34, min_correlation=0.59)
    assert not passes(max_flipped_mass=0.33, min_correlation=0.59)
    assert not passes(max_flipped_mass=0.34, min_correlation=0.61)


def test_ways_out_that_can_be_taken():
    """No 16-bit teacher passes: 32 bits are named, unless the reference did not fit; and no alpha above the config's."""
    bad = row("power", 10.0, 0.2, 0.5, (0.1, 0.3), (0.4, 0.6), passes=False)
    report = made_up()
    for candidate in report["candidates"].values():
        candidate["rewards"] = {"power 10": bad, "power 100": row("power", 100.0)}
    assert judge(report)["line"].endswith("; type --teacher-bits 32 (if plan says that it fits)")
    report["reference"]["streamed_layers"] = 5
    assert "; nothing that was tried passes" in judge(report)["line"]
    for candidate in report["candidates"].values():  # the config's own is no power reward: any alpha will do
        candidate["rewards"]["tanh"] = row("tanh", None, 0.2, 0.5, passes=False)
    other = judge(report | {"own": "tanh", "config": {"reward": "tanh", "teacher_bits": 4}})
    assert other["line"].endswith("; type --reward power --alpha 100")


def test_what_was_not_compared_is_said_with_why():
    missing = made_up(not_audited={"4-bit teacher": "3 of its 9 log-probs are not finite numbers"})
    del missing["candidates"]["4-bit teacher"]
    found = judge(missing)
    assert not found["sound"] and found["note"] == ""
    assert found["line"].startswith("no: 4-bit teacher at power 10: 3 of its 9 log-probs are not finite numbers; type")
    why = {"8-bit teacher": "no memory for it here (x)", "student float16": "no memory for a second student"}
    others = judge(made_up(not_audited=why))
    assert others["sound"] and others["note"] == (
        "not compared: 8-bit teacher (no memory for it here (x)), student float16 (no memory for a second student)"
    )
    few = judge(made_up(not_audited=why, rollouts=8))["note"]  # one line of both
    assert few.startswith("8 rollouts are too few") and few.endswith("; " + others["note"])


def test_a_report_never_replaces_what_came_in_the_meantime(tmp_path):
    def write(out, last_look=lambda: None):
        def fill(folder):
            for name in ("audit.json", "audit.md", "audit.png"):
                (folder / name).write_text("a")
            last_look()

        return write_folder(out, str(tmp_path / "audits"), "a pair", fill)

    out = tmp_path / "deep" / "out"
    check_out(str(out), "audits")
    assert sorted(p.name for p in write(str(out)).iterdir()) == ["audit.json", "audit.md", "audit.png"]
    with pytest.raises(UserError, match="is not empty"):
        check_out(str(out), "audits")
    before = (out / "audit.json").read_bytes()
    with pytest.raises(UserError, match="is not empty"):  # checked again at the end, hours later
        write(str(out))
    assert (out / "audit.json").read_bytes() == before and len(list(out.iterdir())) == 3
    late = tmp_path / "deep" / "late"
    late.mkdir()
    with pytest.raises(UserError, match="is not empty"):
        write(str(late), lambda: (late / "theirs").write_text("b"))
    assert [p.name for p in late.iterdir()] == ["theirs"]

    def stopped():
        raise KeyboardInterrupt

    for where in (str(tmp_path / "other" / "out"), None):
        with pytest.raises(KeyboardInterrupt):
            write(where, stopped)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]
    assert write(None) == tmp_path / "audits" / "a pair" and write(None) == tmp_path / "audits" / "a pair-2"
    link = tmp_path / "link"
    (tmp_path / "empty").mkdir()
    link.symlink_to(tmp_path / "empty")
    write(str(link))
    assert link.is_symlink() and len(list((tmp_path / "empty").iterdir())) == 3
