"""The audit's verdict on made-up numbers, and how a report is written."""

import pytest

from poweropd_lite.base.errors import UserError
from poweropd_lite.rehearse.audit_words import judge


def made_up(flipped=0.01, correlation=0.99, interval=(0.005, 0.02), between=(0.98, 0.995), **changes):
    """A report of two alphas: the config's 4-bit teacher at power 10 has these numbers, all else is perfect."""
    good = {
        "flipped_mass": 0.0,
        "correlation": 1.0,
        "interval": {"flipped_mass": [0.0, 0.0], "correlation": [1.0, 1.0]},
    }
    own = {"flipped_mass": flipped, "correlation": correlation}
    own["interval"] = {"flipped_mass": interval and list(interval), "correlation": between and list(between)}
    candidates = {
        "4-bit teacher": {"rewards": {"power 1": good, "power 10": own}},
        "8-bit teacher": {"rewards": {"power 1": good, "power 10": good}},
        "16-bit teacher": {"rewards": {"power 1": good, "power 10": good}},
    }
    report = {
        "reward": "power 10", "teacher_bits": 4, "device": "cpu", "rollouts": 256, "reference": {"streamed_layers": 0},
        "settings": {"max_flipped_mass": 0.05, "min_correlation": 0.95}, "candidates": candidates, "not_audited": {}, "config": {"reward": "power"},
    }  # fmt: skip
    return report | changes


def test_the_verdict_on_made_up_numbers():
    sound = judge(made_up())
    assert (
        sound["sound"]
        and not sound["uncertain"]
        and sound["words"][0].startswith("yes: 4-bit teacher at power 10: 1.00%")
    )
    assert sound["would_pass"]["4-bit teacher"] == ["power 1", "power 10"]
    flips = judge(made_up(flipped=0.06, interval=(0.055, 0.07)))
    assert not flips["sound"] and not flips["uncertain"]
    assert flips["words"][-1] == "type --teacher-bits 16 (if plan says that it fits), or --alpha 1"
    assert not judge(made_up(correlation=0.94, between=(0.93, 0.945)))["sound"]
    assert judge(made_up(interval=(0.005, 0.06)))["uncertain"]  # the limit is inside
    assert judge(made_up(between=None))["uncertain"]  # there is no interval
    few = judge(made_up(rollouts=8))
    assert few["uncertain"] and any("8 rollouts are too few" in words for words in few["words"])
    on_a_card = judge(made_up(flipped=0.06, device="cuda"))
    assert on_a_card["words"][-1].startswith("type --teacher-bits 8 ")
    close = judge(made_up(flipped=0.0500004, interval=(0.04, 0.06)))
    assert not close["sound"] and "5.000040%" in close["words"][0] and "limit 5%" in close["words"][0]
    assert any("type --rollouts 1024" in words for words in close["words"])


def test_ways_out_that_can_be_taken():
    """No 16-bit teacher passes: 32 bits are named, unless the reference itself did not fit; and no alpha above the config's."""
    bad = {"flipped_mass": 0.2, "correlation": 0.5, "interval": {"flipped_mass": [0.1, 0.3], "correlation": [0.4, 0.6]}}
    report = made_up()
    for rows in report["candidates"].values():
        rows["rewards"] = {"power 10": bad, "power 100": rows["rewards"]["power 1"]}
    assert judge(report)["words"][-1] == "type --teacher-bits 32 (if plan says that it fits)"
    report["reference"]["streamed_layers"] = 5
    assert judge(report)["words"][-1].startswith("nothing that was tried passes")
    missing = made_up(not_audited={"4-bit teacher": "3 of its 9 log-probs are not finite numbers"})
    del missing["candidates"]["4-bit teacher"]
    assert not judge(missing)["sound"] and judge(missing)["words"][0].endswith(
        "3 of its 9 log-probs are not finite numbers"
    )


def test_a_report_never_replaces_what_came_in_the_meantime(tmp_path):
    from poweropd_lite.rehearse.folder import check_out, write_report

    def write(out, last_look=lambda: None):
        return write_report(out, str(tmp_path / "audits"), "a pair", "audit", {"a": 1}, "t", lambda f: f.write_bytes(b"p"), last_look)  # fmt: skip

    out = tmp_path / "deep" / "out"
    check_out(str(out), "audits")
    assert sorted(p.name for p in write(str(out)).iterdir()) == ["audit.json", "audit.md", "audit.png"]
    with pytest.raises(UserError, match="is not empty"):
        check_out(str(out), "audits")
    before = (out / "audit.json").read_bytes()
    with pytest.raises(UserError, match="is not empty"):  # checked again at the end, hours later
        write(str(out))
    assert (out / "audit.json").read_bytes() == before and len(list(out.iterdir())) == 3

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
