"""An advice's report: its fields, the verdict on the config's own reward, and its tables."""

from typing import Any

from poweropd_lite.base.tables import aligned
from poweropd_lite.rehearse.report import Cells, Report, Verdict, every_number, table

PROPOSED = ("power", "log_ratio", "clip", "tanh")  # of the rewards that are compared
Row = dict[str, Any]  # stats.reward_facts, `reward`, `alpha`, `by_decile`, `gradient`, `sparse` and `heavy`
ALIKE = 1e-3  # mean |p - q| below which two models say nearly the same
REWARDS = (
    ("live", "live_share", ".1%", "sparse"), ("r>0", "positive_share", ".1%"), ("its mass", "positive_mass", ".1%"),
    ("mean", "mean", "z.3f"), ("variance", "variance", ".3g"), ("min", "min", ".3g"), ("max", "max", ".3g"),
    ("top 1%", "top_gradient", ".0%", "heavy"), ("norm", "mean_norm", ".2g"), ("cos", "cosine_full_kl", ".2f"),
    ("batches", "cosine_between_batches", ".2f"),
)  # fmt: skip
KEPT = (("kept", "kept_mass", ".2%"), ("kept p05", "kept_mass_p05", ".2%"), ("outside", "tokens_outside", ".2%"))


class Advice(Report):
    """What advise.json holds."""

    sampling: str  # the config's own, a key of truncations
    gradient_rollouts: int
    rewards: dict[str, Row]  # by label
    truncations: dict[str, dict[str, Any]]  # by name


def judge(report: Advice) -> Verdict:
    """Returns the verdict on the config's own reward: whether it pays enough tokens."""
    own, limits, rows = report["own"], report["settings"], report["rewards"]
    live, over, least = rows[own]["live_share"], limits["live_reward"], limits["min_live_share"]
    line = f"|r| of {own} is over {over:g} for {live:.1%} of the tokens; at least {least:.1%} is wanted"
    broken = [label for label, row in rows.items() if None in row["gradient"]["norm"]]
    note = f"not compared: the gradients of {', '.join(broken)}, which are not finite" if broken else ""
    line = f"yes: {line}" if live >= least else f"no: {line}; {_instead(report)}"
    return {"sound": live >= least, "line": line, "note": note}


def _instead(report: Advice) -> str:
    """What to type: a power reward that pays enough tokens, else another one (a z-score is live by its scale alone)."""
    rows, least = report["rewards"], report["settings"]["min_live_share"]
    powers = [label for label, row in rows.items() if row["alpha"] is not None]
    apart = next(rows[label]["mean_abs"] for label in powers if rows[label]["alpha"] == 1)
    if apart < ALIKE:
        nearly = f"student and teacher say nearly the same (p - q is {apart:.1g} on average)"
        return f"{nearly}; choose another teacher, or of so small differences --reward log_ratio, which pays their logs"
    for labels in (powers, [label for label, row in rows.items() if row["reward"] in PROPOSED]):
        best = max(labels, key=lambda label: rows[label]["live_share"])
        row = rows[best]
        if row["live_share"] >= least:
            flags = [f"--reward {row['reward']}"] if row["reward"] != report["config"]["reward"] else []
            flags += [f"--alpha {row['alpha']:g}"] if row["alpha"] is not None else []
            where = f"where it is {row['live_share']:.1%}"
            return f"type {' '.join(flags)}, {where}, or a smaller --live-reward if the reward is only scaled down"
    return f"none reaches that: the highest is {best}, with {row['live_share']:.1%}"


def screen(report: Advice) -> str:
    limits, run, sampling, cuts = report["settings"], report["config"], report["sampling"], report["truncations"]
    rows = {label: row | row["gradient"] for label, row in report["rewards"].items()}
    legend = (
        f"live: |r| > {limits['live_reward']:g} (!: under {limits['few_live_share']:.0%}); its mass: of sum |r|; "
        f"top 1%: of the tokens' gradient (!: over {limits['heavy_share']:.0%}); norm (clipped at "
        f"{run['max_grad_norm']:g}), cos (with full_kl's), batches (between two): gradients of the first "
        f"{report['gradient_rollouts']} rollouts; *: the config's own"
    )
    which = [r for r in dict.fromkeys((report["own"], "log_ratio")) if r in cuts[sampling]["full_score_push"]]
    kept = {name: cut | {r: push["push"] for r, push in cut["full_score_push"].items()} for name, cut in cuts.items()}
    columns = [*KEPT, *((f"push {reward}", reward, ".2%") for reward in which)]
    rewards, truncated = table("reward", rows, REWARDS, report["own"]), table("sampling", kept, columns, sampling)
    below = (
        "kept: student's mass of the ids that could be drawn; outside: tokens here that could not; "
        "push: what drawing from it adds to score full (to score sampled: nothing)"
    )
    return f"\n{aligned(rewards)}\n{legend}\n\n{aligned(truncated)}\n{below}\n"


def numbers(report: Advice) -> dict[str, Cells]:
    """Of the tenths of completions the mean reward alone."""
    rows, cuts = report["rewards"], report["truncations"]
    placed = [(label, row["by_decile"]) for label, row in rows.items() if row["by_decile"]]
    tenths = {label: {f"{10 * i}%": d and d["mean"] for i, d in enumerate(deciles)} for label, deciles in placed}
    pushes = {f"Push of score full, sampled {name}": cut["full_score_push"] for name, cut in cuts.items()}
    return {
        "Rewards": every_number("reward", {label: row | row["gradient"] for label, row in rows.items()}),
        "Mean reward by tenth of the completion, from": every_number("reward", tenths),
        "Truncated sampling": every_number("sampling", cuts),
        **{title: every_number("reward", push) for title, push in pushes.items()},
    }
