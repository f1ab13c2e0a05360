"""The page: one HTML file with its pictures inside it, no script, nothing from the net."""

import base64
import html
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import poweropd_lite
from poweropd_lite.base.errors import printable
from poweropd_lite.checks.reward import reward_settings
from poweropd_lite.report.drawing import Drawn
from poweropd_lite.report.groups import Group, shown
from poweropd_lite.report.read import Line, Run
from poweropd_lite.report.table import Row, difference_in_words, in_words
from poweropd_lite.rewards.table import reward_of

HEAD, TAIL = 400, 100  # tokens shown of a long completion
SHADES = 20  # of blue and of orange
UNBOUNDED = 5.0  # the size at which the colour of a reward without a bound is full
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
body { margin: 0 auto; max-width: 1180px; padding: 0 1rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1.2rem 0 .6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h1, h3, p, li, figcaption { overflow-wrap: anywhere; } h3 { font-size: 1rem; }
p, li, figcaption { max-width: 75ch; } figcaption, .quiet { color: #555; font-size: .875rem; font-weight: 400; }
.answer { font-size: 1.1rem; } .each { padding-left: 1.2rem; }
.grid { display: grid; gap: 1.5rem 2rem; align-items: start; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 740px) { .grid { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
figure { margin: 0; min-width: 0; } figure b { display: block; } img { width: 100%; height: auto; }
.alone { max-width: 620px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .2rem .7rem; text-align: right; vertical-align: top; white-space: nowrap; }
th, td { border-bottom: 1px solid #e3e3e3; } td small { display: block; color: #555; }
th { white-space: normal; min-width: 5rem; max-width: 12rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 1.2rem; }
pre { font: .875rem/1.7 ui-monospace, monospace; } pre span { border-radius: 2px; padding: 1px 0; }
.none { color: #777; font-style: italic; }
.minus { border-bottom: 2px solid #d55e00; } details { margin: .4rem 0; } summary { cursor: pointer; }
""" + "".join(
    f".{kind}{i} {{ background: rgba({colour},{0.75 * i / SHADES:.2f}) }}\n"
    for kind, colour in (("p", "0,114,178"), ("m", "213,94,0"))
    for i in range(SHADES + 1)
)
COLOURS = (
    "Blue: rewarded. Orange and underlined: punished. Grey: not in the loss. A colour is full where the reward's size "
    "is at the end of the scale. A token's reward shows under the pointer."
)

SEEDS = (
    "Means over seeds; \u00b1 is half of the 95% Student-t interval, which does not say what other problems would give."
)
OF_ANY = "Rewards, gaps and memory are the extremes of any seed."


def page(
    groups: Sequence[Group],
    numbers: dict[str, Any],
    answer: Sequence[str],
    sentences: Sequence[str],
    pictures: Sequence[tuple[Drawn, bytes]],
) -> str:
    """Returns the page as HTML: the answer, the main figures, the table, and the rest; with each picture its SVG."""
    title = _(numbers["title"])
    made = f"Made by poweropd_lite {poweropd_lite.__version__} on {time.strftime('%Y-%m-%d %H:%M')}."
    main, rest = ([(drawn, svg) for drawn, svg in pictures if drawn.main == wanted] for wanted in (True, False))
    each = "".join(f"<li>{_(sentence)}</li>" for sentence in sentences)
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
        *(f"<p class='answer'>{_(sentence)}</p>" for sentence in answer),
        f"<ul class='each'>{each}</ul>" if len(sentences) > 1 else f"<p>{each[4:-5]}</p>",
        f"<p class='quiet'>{SEEDS}</p>" if any(len(group.runs) > 1 for group in groups) else "",
        *_grid(main),
        "<h2>In numbers</h2>",
        _table(groups, ((row["name"], _compared(groups, row)) for row in numbers["table"])),
        f"<p class='quiet'>{_(_how_to_read(groups, numbers))}</p>",
    ]
    if len(groups) > 1 and (settings := numbers["settings"]):
        rows = ((name, [_(shown(value)) for value in values]) for name, values in settings.items())
        parts += ["<h2>Settings that differ</h2>", _table(groups, rows)]
    parts += ["<h2>More figures</h2>", *_grid(rest)]
    if any(run.samples for group in groups for run in group.runs):
        parts += ["<h2>Completions, each token coloured by its reward</h2>", f"<p class='quiet'>{COLOURS}</p>"]
        parts += [_samples(group, run) for group in groups for run in group.runs[:1] if run.samples]
    parts.append(f"<p class='quiet'>{made} The numbers under every figure are in report.json beside this page.</p>")
    return "\n".join([*parts, "</body></html>\n"])


def _grid(pictures: Sequence[tuple[Drawn, bytes]]) -> list[str]:
    kind = "grid" if len(pictures) > 1 else "alone"
    return [f"<div class='{kind}'>", *(_figure(*picture) for picture in pictures), "</div>"]


def _how_to_read(groups: Sequence[Group], numbers: dict[str, Any]) -> str:
    text = OF_ANY if any(len(group.runs) > 1 for group in groups) else ""
    if len(groups) == 1:
        return text
    if all(half is None for row in numbers["table"] for half in row["noise"]):
        return f"{text} No difference is named: with one seed a setting, noise is not known.".strip()
    return f"{text} Below a value stands its difference from {numbers['baseline']}, where the interval excludes zero."


def _table(groups: Sequence[Group], rows: Iterable[tuple[str, list[str]]]) -> str:
    lines = ["<tr><th></th>" + "".join(f"<th>{_(group.label)}</th>" for group in groups) + "</tr>"]
    lines += [f"<tr><td>{_(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows]
    return f"<div class='wide'><table>{''.join(lines)}</table></div>"


def _compared(groups: Sequence[Group], row: Row) -> list[str]:
    cells = []
    for i, value in enumerate(row["values"]):
        beside = difference_in_words(row["differences"][i], row["unit"], row["noise"][i])
        seeds, here = len(groups[i].runs), row["seeds"][i]
        fewer = f"{here} of {seeds} seeds" if 0 < here < seeds else ""
        small = "".join(f"<small>{_(text)}</small>" for text in (beside, fewer) if text)
        cells.append(_(in_words(value, row["unit"], row["halves"][i])) + small)
    return cells


def _figure(picture: Drawn, svg: bytes) -> str:
    title, caption, data = _(picture.title), _(picture.caption), base64.b64encode(svg).decode()
    image = f"<img alt='{title}: {caption}' src='data:image/svg+xml;base64,{data}'>"
    return f"<figure><b>{title}</b>{image}<figcaption>{caption}</figcaption></figure>"


def _samples(group: Group, run: Run) -> str:
    """The first, middle and last completion of training whose tokens' rewards were kept, and the last of evaluation."""
    kept = [sample for sample in run.samples if sample.get("rewards") is not None]
    chosen = [kept[i] for i in sorted({0, len(kept) // 2, len(kept) - 1})] if kept else []
    scored = [sample for sample in run.samples if sample["kind"] == "eval"][-1:]
    entry = reward_of(run.config.reward)
    limit = entry.limits(reward_settings(run.config))[1] if entry.bounded else UNBOUNDED
    of = f" ({_(run.name)}, the first of {len(group.runs)} seeds)" if len(group.runs) > 1 else ""
    scale = " ".join(_span(f" {share * limit:+g} ", share * limit, limit) for share in (-1, -0.5, 0, 0.5, 1))
    parts = [f"<h3>{_(group.label)}{of}</h3><p><span class='quiet'>what a token is paid:</span> {scale}</p>"]
    for sample in [*chosen, *scored]:
        end = "ended by a stop token" if sample["finish"] == "stop" else "cut at the length limit"
        kind = "training" if sample["kind"] == "train" else "evaluation, not rewarded"
        text = coloured(sample, limit) if "rewards" in sample else _(sample["completion"])
        parts.append(f"<details open><summary>step {sample['step']}, {kind}, {end}</summary>")
        parts.append(f"<pre class='quiet'>{_(sample['prompt'].strip())}</pre><pre>{text}</pre></details>")
    return "\n".join(parts)


def coloured(sample: Line, limit: float) -> str:
    """Returns a sample's completion as HTML, a span a token; the colour is full at a reward of the size `limit`.

    Of a completion of more than 500 tokens the first 400 and the last 100 are shown, and how many are left out.
    """
    tokens, rewards = sample["tokens"], sample["rewards"]
    spans = [_span(*pair, limit) for pair in zip(tokens, rewards + [None] * (len(tokens) - len(rewards)), strict=True)]
    if len(spans) > HEAD + TAIL:
        spans[HEAD:-TAIL] = [f"<span class='none'> ... {len(spans) - HEAD - TAIL:,} more ... </span>"]
    return "".join(spans)


def _span(token: str, reward: float | None, limit: float) -> str:
    shown = _(token).replace("\n", "\u21b5\n")
    if reward is None or not math.isfinite(reward):
        return f"<span class='none'>{shown}</span>"
    shade = round(SHADES * min(1.0, abs(reward) / limit))
    minus = " minus" if reward < -0.05 * limit else ""
    return f"<span class='{'p' if reward >= 0 else 'm'}{shade}{minus}' title='{reward:+.3g}'>{shown}</span>"


def _(text: Any) -> str:
    return html.escape(printable(str(text)), quote=True)
