"""The page: one HTML file with its pictures inside it, no script, nothing from the net."""

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from poweropd_lite.report.read import Run
from poweropd_lite.report.table import Row, difference_in_words, in_words


@dataclass(frozen=True)
class Picture:
    """A figure as it stands on the page."""

    title: str
    caption: str
    svg: bytes


HEAD, TAIL = 400, 100  # tokens shown of a long completion
SHADES = 20  # of blue and of orange
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 1180px; padding: 0 1rem 3rem; }
h1 { font-size: 1.5rem; margin: 1.2rem 0 .3rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, figcaption { max-width: 75ch; } figcaption, .quiet { color: #555; font-size: .875rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 1.5rem; align-items: start; }
figure { margin: 0; min-width: 0; } figure b { display: block; } img { width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; position: sticky; left: 0; background: #fff; }
td small { display: block; color: #555; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: .875rem/1.7 ui-monospace, monospace; margin: .3rem 0 1.2rem; }
pre span { border-radius: 2px; padding: 1px 0; } .minus { border-bottom: 2px solid #d55e00; } .none { color: #777; font-style: italic; }
details { margin: .4rem 0; } summary { cursor: pointer; }
""" + "".join(
    f".{kind}{i} {{ background: rgba({colour},{0.75 * i / SHADES:.2f}) }}\n"
    for kind, colour in (("p", "0,114,178"), ("m", "213,94,0"))
    for i in range(SHADES + 1)
)


def page(
    title: str,
    summary: Sequence[str],
    runs: Sequence[Run],
    rows: Sequence[Row],
    settings: dict[str, list[Any]],
    pictures: Sequence[Picture],
    made: str,
) -> str:
    """Returns the page as HTML."""
    names = [run.name for run in runs]
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{_(title)}</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{STYLE}</style></head><body><h1>{_(title)}</h1>",
        *(f"<p>{_(sentence)}</p>" for sentence in summary),
        "<h2>In numbers</h2>",
        _table(names, rows),
    ]
    if settings:
        parts.append("<h2>Settings that differ</h2>")
        lines = [{"name": name, "unit": "", "values": [_setting(v) for v in values], "differences": [None] * len(values)} for name, values in settings.items()]  # fmt: skip
        parts.append(_table(names, lines))
    parts.append("<h2>Figures</h2><div class='grid'>")
    parts += [_figure(picture) for picture in pictures]
    parts.append("</div>")
    if any(run.samples for run in runs):
        parts.append("<h2>Completions, each token coloured by its reward</h2>")
        parts.append(
            "<p class='quiet'>Blue: rewarded. Orange and underlined: punished. Grey: not in the loss. A colour is full where "
            "the reward's size reaches what stands beside the run's name. A token's reward shows under the pointer.</p>"
        )
        parts += [_samples(run) for run in runs if run.samples]
    parts.append(f"<p class='quiet'>{_(made)} The numbers under every figure are in report.json beside this page.</p>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _table(names: Sequence[str], rows: Sequence[Row]) -> str:
    lines = ["<tr><th></th>" + "".join(f"<th>{_(name)}</th>" for name in names) + "</tr>"]
    for row in rows:
        cells = []
        for value, difference in zip(row["values"], row["differences"], strict=True):
            beside = difference_in_words(difference, row["unit"])
            cells.append(f"<td>{_(in_words(value, row['unit']))}{f'<small>{_(beside)}</small>' if beside else ''}</td>")
        lines.append(f"<tr><td>{_(row['name'])}</td>{''.join(cells)}</tr>")
    return f"<div class='wide'><table>{''.join(lines)}</table></div>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode()
    return (
        f"<figure><b>{_(picture.title)}</b><img alt='{_(picture.title)}: {_(picture.caption)}' "
        f"src='data:image/svg+xml;base64,{data}'><figcaption>{_(picture.caption)}</figcaption></figure>"
    )


def _samples(run: Run) -> str:
    """The first, the middle and the last completion of training whose tokens' rewards were kept, and the last of evaluation."""
    kept = [sample for sample in run.samples if sample.get("rewards") is not None]
    chosen = [kept[i] for i in sorted({0, len(kept) // 2, len(kept) - 1})] if kept else []
    scored = [sample for sample in run.samples if sample["kind"] == "eval"][-1:]
    limit = full_colour(run)
    parts = [f"<h3>{_(run.name)} <span class='quiet'>full colour at {limit:g}</span></h3>"]
    for sample in [*chosen, *scored]:
        end = "ended by a stop token" if sample["finish"] == "stop" else "cut at the length limit"
        kind = "training" if sample["kind"] == "train" else "evaluation, not rewarded"
        text = coloured(sample, limit) if "rewards" in sample else _(sample["completion"])
        parts.append(f"<details open><summary>step {sample['step']}, {kind}, {end}</summary>")
        parts.append(f"<pre class='quiet'>{_(sample['prompt'].strip())}</pre><pre>{text}</pre></details>")
    return "\n".join(parts)


def coloured(sample: dict[str, Any], limit: float) -> str:
    """Returns a sample's completion as HTML, a span a token; the colour is full at a reward of the size `limit`.

    Of a completion of more than 500 tokens the first 400 and the last 100 are shown, and how many are left out.
    """
    parts = []
    count = len(sample["tokens"])
    rewards = sample["rewards"] + [None] * (count - len(sample["rewards"]))
    for i, (text, reward) in enumerate(zip(sample["tokens"], rewards, strict=True)):
        if count > HEAD + TAIL and HEAD <= i < count - TAIL:
            parts += [f"<span class='none'> ... {count - HEAD - TAIL:,} more ... </span>"] if i == HEAD else []
            continue
        shown = _(text).replace("\n", "\u21b5\n")
        if reward is None or not math.isfinite(reward):
            parts.append(f"<span class='none'>{shown}</span>")
            continue
        shade = round(SHADES * min(1.0, abs(reward) / limit))
        minus = " minus" if reward < -0.05 * limit else ""
        parts.append(f"<span class='{'p' if reward >= 0 else 'm'}{shade}{minus}' title='{reward:+.3g}'>{shown}</span>")
    return "".join(parts)


def full_colour(run: Run) -> float:
    """Returns the size of a reward at which its colour is full: the bound of a bounded one, 5 for others."""
    if run.config.reward == "clip":
        return run.config.clip_limit
    return 1.0 if run.config.reward in ("power", "tanh") else 5.0


def _setting(value: Any) -> str:
    return "not given" if value is None else str(value)


def _(text: str) -> str:
    return html.escape(str(text), quote=True)
