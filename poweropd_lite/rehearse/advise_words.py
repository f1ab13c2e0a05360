"""An advice in words and tables: what is seen, the screen's tables and the Markdown ones. Text only."""

from typing import Any

from poweropd_lite.base.tables import aligned, markdown_table, number, percent

Report = dict[str, Any]
ALIKE = 1e-3  # mean |p - q| below which two models say nearly the same
UNSAMPLED = ("full_kl",)  # has no reward of single tokens


def judge(report: Report) -> dict[str, Any]:
    """Returns the verdict on the config's own reward, and what is seen of all of them as sentences."""
    own, limits = report["reward"], report["settings"]
    live = report["rewards"][own]["live_share"]
    sound = live >= limits["min_live_share"]
    words = [_own(own, sound, report)]
    if not any(row["mean_abs"] for row in report["rewards"].values()):
        return {"reward": own, "sound": sound, "live_share": live, "words": words}
    words += [*_spread(report), *_signs(report), *_positions(own, report), *_norms(report), *_directions(report)]
    words += _truncation(own, report)
    words.append("nothing was trained: these are reasons to try a reward first, not results")
    return {"reward": own, "sound": sound, "live_share": live, "words": words}


def screen(report: Report) -> str:
    """Returns what the command prints."""
    own, limits = report["reward"], report["settings"]
    return "\n".join(
        [
            f"student {report['student']} <- teacher {report['teacher']} ({report['teacher_bits']}-bit), on {report['device']} in {report['dtype']}",
            f"{report['rollouts']} rollouts, {report['tokens']:,} tokens, sampled {report['sampling']}; gradients of score {report['score']} on the first {report['gradient_rollouts']}",
            "",
            aligned(_reward_rows(report)),
            f"live: tokens with |r| > {limits['live_reward']:g}; r>0: share of tokens, of sum |r|; top 1%: of the tokens' gradient; norm: of a batch's",
            f"gradient; cos: with full_kl's, and between batches; * {own}, the config's own",
            "",
            aligned(_truncation_rows(report)),
            "kept: student's mass of the ids that could be drawn; outside: tokens here that could not; push: what drawing from it adds to score full",
            "",
            *report["verdict"]["words"],
        ]
    )


def markdown(report: Report) -> str:
    """Returns the tables with every number, as Markdown."""
    lines = [
        f"# Advice: student {report['student']}, teacher {report['teacher']} ({report['teacher_bits']}-bit)",
        "",
        f"{report['rollouts']} rollouts, {report['tokens']:,} tokens, sampled {report['sampling']}; gradients of score {report['score']} on the first "
        f"{report['gradient_rollouts']}; on {report['device']} in {report['dtype']}. What each column is: docs/advise.md.",
        "",
        *(f"- {sentence}" for sentence in report["verdict"]["words"]),
        "",
        markdown_table(_reward_rows(report)),
        "## Rewards",
        "",
        markdown_table(_facts_rows(report)),
        "## Mean reward by tenth of the completion",
        "",
        markdown_table(_decile_rows(report)),
        "## Truncated sampling",
        "",
        markdown_table(_truncation_rows(report)),
        "Push of score `full`, as a share of the gradient (net: with the reward's sign; below 0: into the tail that is never drawn):",
        "",
        markdown_table(_push_rows(report)),
    ]
    return "\n".join(lines)


def _sampled(report: Report) -> list[str]:
    return [name for name in report["rewards"] if name not in UNSAMPLED]


def _sparse(name: str, report: Report) -> bool:
    return report["rewards"][name]["live_share"] < report["settings"]["few_live_share"]


def _heavy(name: str, report: Report) -> bool:
    share = report["rewards"][name]["top_gradient"]
    return share is not None and share > report["settings"]["heavy_share"]


def _own(own: str, sound: bool, report: Report) -> str:
    limits, rows = report["settings"], report["rewards"]
    live = f"|r| of {own} is over {limits['live_reward']:g} for {percent(rows[own]['live_share'])} of the tokens"
    if sound:
        return f"yes: {live}; at least {percent(limits['min_live_share'])} is wanted"
    words = f"no: {live}, and at least {percent(limits['min_live_share'])} is wanted"
    if rows["power 1"]["mean_abs"] < ALIKE:
        return f"{words}: student and teacher say nearly the same (p - q is {rows['power 1']['mean_abs']:.1g} on average); choose another teacher"
    # The power reward's own alphas first. (A z-score is live by its scale alone.)
    for names in ([n for n in rows if n.startswith("power ")], [n for n in _sampled(report) if n != "zscore"]):
        most = max(names, key=lambda name: rows[name]["live_share"])
        if rows[most]["live_share"] >= limits["min_live_share"]:
            return f"{words}: type {_flags(most)}, where it is {percent(rows[most]['live_share'])}, or a smaller --live-reward if the reward is only scaled down"
    return f"{words}; none reaches that: the highest is {most}, with {percent(rows[most]['live_share'])}"


def _flags(name: str) -> str:
    kind, *alpha = name.split()
    return f"--alpha {alpha[0]}" if alpha else f"--reward {kind}"


def _spread(report: Report) -> list[str]:
    """Who pays few tokens, and whose gradient a few tokens carry."""
    rows, limits = report["rewards"], report["settings"]
    sparse = [f"{name} ({percent(rows[name]['live_share'])})" for name in _sampled(report) if _sparse(name, report)]
    heavy = [f"{name} ({percent(rows[name]['top_gradient'], 0)})" for name in _sampled(report) if _heavy(name, report)]
    words = []
    if sparse:
        words.append(f"sparse, under {percent(limits['few_live_share'], 0)} of the tokens live: {', '.join(sparse)}")
    if heavy:
        words.append(
            f"the top 1% of the tokens carry over {percent(limits['heavy_share'], 0)} of the gradient: {', '.join(heavy)}"
        )
    return words


def _signs(report: Report) -> list[str]:
    rows = report["rewards"]
    turned = [
        f"{n} ({percent(rows[n]['sign_unlike_log_ratio'])})"
        for n in _sampled(report)
        if rows[n]["sign_unlike_log_ratio"]
    ]
    lowest = min(_sampled(report), key=lambda name: rows[name]["min"])
    words = [
        f"the lowest reward of a token is {rows[lowest]['min']:.3g}, by {lowest}; every power reward is within -1 and 1"
    ]
    if turned:
        words.append(f"pays tokens against the sign of log p - log q: {', '.join(turned)}")
    return words


def _positions(own: str, report: Report) -> list[str]:
    """Where in a completion the config's own reward is."""
    deciles = report["rewards"][own]["by_decile"]
    if deciles is None or deciles[0] is None or deciles[-1] is None:
        return []
    first, last = (part["mean_abs"] for part in (deciles[0], deciles[-1]))
    return [f"mean |r| of {own} is {first:.3g} in the first tenth of a completion and {last:.3g} in the last"]


def _norms(report: Report) -> list[str]:
    found = {name: row["gradient"]["norm"] for name, row in report["rewards"].items()}
    broken = [name for name, norms in found.items() if None in norms]
    found = {name: norms for name, norms in found.items() if None not in norms}
    words = [f"a gradient that is not finite: {', '.join(broken)}"] if broken else []
    if not found:
        return words
    means = {name: sum(norms) / len(norms) for name, norms in found.items()}
    top, low, limit = max(means, key=means.get), min(means, key=means.get), report["config"]["max_grad_norm"]
    clipped = [name for name, norms in found.items() if max(norms) > limit]
    said = f"a batch's is clipped at {limit:g} for {', '.join(clipped)}" if clipped else f"none is clipped at {limit:g}"
    return [*words, f"mean gradient norms from {means[low]:.2g} ({low}) to {means[top]:.2g} ({top}); {said}"]


def _directions(report: Report) -> list[str]:
    """Whose gradients are near full_kl's, as far as a few batches can tell, and how much of a gradient is the same in another batch."""
    near = _cosines("cosine_full_kl", report)
    if not near:
        return []
    best = max(near, key=near.get)
    batches = report["rewards"][best]["gradient"]["cosine_full_kl_by_batch"]
    spread = (sum((c - near[best]) ** 2 for c in batches) / len(batches)) ** 0.5
    alike = sorted((name for name in near if near[name] >= near[best] - spread), key=near.get, reverse=True)
    words = [
        f"nearest to full_kl's direction, as far as {len(batches)} batches tell (they differ by {spread:.2f}): "
        + ", ".join(f"{name} ({near[name]:.2f})" for name in alike)
    ]
    if "log_ratio" in near and _is_its_expectation(report):
        but = " but for masked stops" if report["config"]["stop_mode"] == "mask" else ""
        words.append(
            f"log_ratio, whose expectation that direction is{but}, has {near['log_ratio']:.2f}: the rest is noise of sampling"
        )
    again = {name: row["gradient"]["cosine_between_batches"] for name, row in report["rewards"].items()}
    shown = dict.fromkeys((report["reward"], "log_ratio", "full_kl"))
    between = ", ".join(f"{name} {number(again[name], '.2f')}" for name in shown if name in again)
    return ["; ".join(words), f"cosine of a reward's gradients on two batches: {between}"]


def _is_its_expectation(report: Report) -> bool:
    """Whether tokens are drawn from q itself and scored as drawn: then E[log ratio's gradient] is full_kl's."""
    config = report["config"]
    plain = config["temperature"] == 1 and config["top_k"] == 0 and config["top_p"] == 1
    return plain and config["stop_mode"] in ("mask", "raw")


def _cosines(key: str, report: Report) -> dict[str, float]:
    found = {name: report["rewards"][name]["gradient"][key] for name in _sampled(report)}
    return {name: cosine for name, cosine in found.items() if cosine is not None}


def _truncation(own: str, report: Report) -> list[str]:
    """What drawing from another distribution than q does here, and what the released code's truncation would do."""
    words, which = [], own if own not in UNSAMPLED else "log_ratio"
    for name, row in report["truncations"].items():
        push = percent(row["full_score_push"][which]["push"])
        if name == report["sampling"] and (row["top_k"] or row["top_p"] < 1 or row["temperature"] != 1):
            other = (
                "--stop-mode cross_eos --score sampled"
                if report["config"]["stop_mode"] == "relabel"
                else "--score sampled"
            )
            cure = (
                "score sampled takes that out"
                if report["score"] == "sampled"
                else f"type {other}, which takes that out"
            )
            words.append(
                f"sampling here ({name}) keeps {percent(row['kept_mass'])} of the mass; under score full, drawing from it and not from "
                f"q would push by {push} of {which}'s gradient: {cure}"
            )
        elif name != report["sampling"] and row["top_k"] and row["top_p"] < 1:
            words.append(
                f"{name} would keep {percent(row['kept_mass'])} of the mass and, under score full, push by {push} of {which}'s gradient"
            )
    return words


def _reward_rows(report: Report) -> list[list[str]]:
    head = ["reward", "live", "r>0", "its mass", "mean", "variance", "min", "max", "top 1%", "norm", "cos", "batches"]
    body = []
    for name, row in report["rewards"].items():
        norms, gradient = row["gradient"]["norm"], row["gradient"]
        body.append(
            [
                name + (" *" if name == report["reward"] else ""),
                percent(row["live_share"]),
                percent(row["positive_share"]),
                percent(row["positive_mass"]),
                number(round(row["mean"], 3) + 0.0, ".3f"),  # no -0.000
                number(row["variance"], ".3g"),
                number(row["min"]),
                number(row["max"]),
                percent(row["top_gradient"], 0),
                "-" if None in norms else number(sum(norms) / len(norms), ".2g"),
                number(gradient["cosine_full_kl"], ".2f"),
                number(gradient["cosine_between_batches"], ".2f"),
            ]
        )
    return [head, *body]


def _facts_rows(report: Report) -> list[list[str]]:
    head = [
        "reward",
        "tokens",
        "r<0",
        "r=0",
        "p05",
        "p95",
        "mean abs r",
        "top 1% of abs r",
        "effective share",
        "sign unlike log ratio",
    ]
    body = [
        [
            name,
            f"{row['tokens']:,}",
            percent(row["negative_share"]),
            percent(row["zero_share"]),
            number(row["p05"]),
            number(row["p95"]),
            number(row["mean_abs"]),
            percent(row["tail"]),
            percent(row["effective_share"]),
            percent(row["sign_unlike_log_ratio"]),
        ]
        for name, row in report["rewards"].items()
    ]
    return [head, *body]


def _decile_rows(report: Report) -> list[list[str]]:
    rows = {name: row["by_decile"] for name, row in report["rewards"].items() if row["by_decile"]}
    cells = [[name, *(number(part and part["mean"], ".3f") for part in parts)] for name, parts in rows.items()]
    return [["reward", *(f"{10 * i}-{10 * i + 10}%" for i in range(10))], *cells]


def _truncation_rows(report: Report) -> list[list[str]]:
    own = report["reward"] if report["reward"] not in UNSAMPLED else "log_ratio"
    shown = [own] if own == "log_ratio" else [own, "log_ratio"]
    head = ["sampling", "kept", "kept p05", "outside", *(f"push {name}" for name in shown)]
    body = [
        [
            name + (" *" if name == report["sampling"] else ""),
            *(percent(row[key], 2) for key in ("kept_mass", "kept_mass_p05", "tokens_outside")),
            *(percent(row["full_score_push"][reward]["push"], 2) for reward in shown),
        ]
        for name, row in report["truncations"].items()
    ]
    return [head, *body]


def _push_rows(report: Report) -> list[list[str]]:
    cuts = report["truncations"]
    head = ["reward", *(f"{name}: {kind}" for name in cuts for kind in ("push", "net"))]
    body = []
    for reward in _sampled(report):
        pushes = [row["full_score_push"][reward] for row in cuts.values()]
        body.append([reward, *(percent(push[kind], 2) for push in pushes for kind in ("push", "net_push"))])
    return [head, *body]
