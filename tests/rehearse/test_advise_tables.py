"""What advise concludes and shows, of numbers that are made up."""

from poweropd_lite.rehearse.advise_report import judge, screen


def made_up(**changes):
    """A report of five rewards on plain sampling; `changes` are of the rewards, by label."""
    row = {
        "live_share": 0.5, "positive_share": 0.4, "positive_mass": 0.5, "mean": -0.1, "mean_abs": 0.3, "variance": 0.2,
        "min": -0.9, "max": 0.8, "top_gradient": 0.1, "sparse": False, "heavy": False, "mean_norm": 0.2,
        "gradient": {"norm": [0.1, 0.3], "cosine_full_kl": 0.5, "cosine_between_batches": 0.1},
    }  # fmt: skip
    named = {"power 1": ("power", 1.0), "power 10": ("power", 10.0)}
    named |= {reward: (reward, None) for reward in ("log_ratio", "zscore", "full_kl")}
    rows = {label: row | {"reward": r, "alpha": a} | changes.get(label, {}) for label, (r, a) in named.items()}
    push = {name: {"push": 0.25, "net_push": -0.2} for name in rows if name != "full_kl"}
    cut = {"kept_mass": 1.0, "kept_mass_p05": 0.99, "tokens_outside": 0.0, "full_score_push": push}
    return {
        "own": "power 10", "sampling": "untruncated", "rewards": rows, "gradient_rollouts": 8,
        "truncations": {"untruncated": cut, "top-k 20, top-p 0.95": cut | {"kept_mass": 0.98}},
        "settings": {"live_reward": 0.01, "min_live_share": 0.01, "few_live_share": 0.05, "heavy_share": 0.25},
        "config": {"reward": "power", "score": "sampled", "max_grad_norm": 1.0},
    }  # fmt: skip


def test_the_verdict_on_made_up_numbers():
    found = judge(made_up())
    assert found["sound"] and found["note"] == ""
    assert found["line"] == "yes: |r| of power 10 is over 0.01 for 50.0% of the tokens; at least 1.0% is wanted"
    infinite = {"norm": [None, 0.1], "cosine_full_kl": None, "cosine_between_batches": None}
    found = judge(made_up(**{"power 1": {"gradient": infinite}}))  # as float16 may
    assert found["sound"] and found["note"] == "not compared: the gradients of power 1, which are not finite"


def test_the_tables_on_made_up_numbers():
    """What is sparse or carried by a few is marked, what is not defined is a dash, and no mean is -0.000."""
    infinite = {"norm": [None, 0.1], "cosine_full_kl": None, "cosine_between_batches": None}
    seen = {
        "power 1": {"live_share": 0.02, "sparse": True, "mean": -1e-5, "mean_norm": None, "gradient": infinite},
        "log_ratio": {"top_gradient": 0.6, "heavy": True, "min": -40.0, "mean_norm": 3.0},
        "full_kl": {"top_gradient": None},
    }
    lines = {" ".join(line.split()[:2]): line.split() for line in screen(made_up(**seen)).splitlines() if line}
    assert lines["power 1"] == [
        "power",
        "1",
        "2.0%!",
        "40.0%",
        "50.0%",
        "0.000",
        "0.2",
        "-0.9",
        "0.8",
        "10%",
        "-",
        "-",
        "-",
    ]
    assert lines["power 10"] == [
        "power",
        "10",
        "*",
        "50.0%",
        "40.0%",
        "50.0%",
        "-0.100",
        "0.2",
        "-0.9",
        "0.8",
        "10%",
        "0.2",
        "0.50",
        "0.10",
    ]
    assert lines["log_ratio 50.0%"][-5:] == ["0.8", "60%!", "3", "0.50", "0.10"]
    assert lines["full_kl 50.0%"][-4:] == ["-", "0.2", "0.50", "0.10"]
    assert lines["untruncated *"] == ["untruncated", "*", "100.00%", "99.00%", "0.00%", "25.00%", "25.00%"]
    assert lines["top-k 20,"][-5:] == ["98.00%", "99.00%", "0.00%", "25.00%", "25.00%"]
    legends = [" ".join(words) for words in lines.values() if words[0] in ("live:", "kept:")]
    assert len(legends) == 2 and "!: under 5%" in legends[0] and "clipped at 1" in legends[0]
    # full_kl has no reward of single tokens, so no push of its own
    assert "push full_kl" not in screen(made_up() | {"own": "full_kl"})


def test_refusals_name_a_reward_that_pays():
    few = {"power 10": {"live_share": 0.001}, "zscore": {"live_share": 1.0}, "power 1": {"live_share": 0.6}}
    found = judge(made_up(**few))
    assert not found["sound"] and "is wanted; type --alpha 1, where it is 60.0%" in found["line"]
    low = {name: {"live_share": 0.005} for name in made_up()["rewards"]}
    assert judge(made_up(**low))["line"].endswith("none reaches that: the highest is power 1, with 0.5%")
    ratio = {**low, "log_ratio": {"live_share": 0.3}}
    assert "type --reward log_ratio, where it is 30.0%" in judge(made_up(**ratio))["line"]
    other = made_up(**{"log_ratio": {"live_share": 0.005}, "power 1": {"live_share": 0.6}})
    other |= {"own": "log_ratio", "config": {"reward": "log_ratio"}}  # --alpha alone would change nothing
    assert "type --reward power --alpha 1, where it is 60.0%" in judge(other)["line"]
    alike = judge(made_up(**{"power 10": {"live_share": 0.0}, "power 1": {"mean_abs": 4e-4}}))
    assert "student and teacher say nearly the same (p - q is 0.0004 on average)" in alike["line"]
    nothing = judge(made_up(**{name: {"mean_abs": 0.0, "live_share": 0.0} for name in made_up()["rewards"]}))
    assert "(p - q is 0 on average)" in nothing["line"] and nothing["note"] == ""
