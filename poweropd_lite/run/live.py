"""A run as seen in Jupyter: a progress bar with an ETA, the latest figures and a moving picture, in place of printed lines.

Redrawing the picture takes at most REDRAW_SHARE of the run's time: the more it costs, the rarer it is. The figure is made
once; a redraw only moves its lines, which is several times faster than a new figure.
"""

import base64
import io
import json
import math
import time
from pathlib import Path
from typing import Any

from poweropd_lite.base.config import Config
from poweropd_lite.base.progress import Panel, bar, clock, in_notebook
from poweropd_lite.run.metrics import Progress

SECONDS = 1.0  # between two redraws, at least
REDRAW_SHARE = 0.02  # of the time since the run began
FINAL_DPI = 110  # of the picture that the saved notebook keeps


def show_progress(config: Config, start: int, metrics: Path) -> "Progress | LiveRun":
    """Returns what shows a run from step `start` on: a live picture in Jupyter, a bar or lines elsewhere.

    `metrics` is the run's metrics.jsonl, which holds what a resumed run did before.
    """
    return LiveRun(config, start, metrics) if in_notebook() else Progress(config.steps, start)


class LiveRun:
    """Shows a run in the output of a notebook's cell. What is said is printed below."""

    unread = False  # (metrics.Progress)

    def __init__(self, config: Config, start: int, metrics: Path) -> None:
        self.total, self.at, self.closed = config.steps, start, False
        self.started, self.shown, self.drawn = time.monotonic(), -math.inf, -math.inf
        self.spent = self.price = 0.0  # seconds of redrawing so far, and of the latest redraw
        self.left, self.doing = "?", "train"
        self.figures: dict[str, str] = {}  # of the latest step
        self.score: dict[str, str] = {}  # of the latest evaluation
        self.panel, self.picture_panel = Panel(), Panel()
        reward = config.reward_label
        self.own = config.eval_grader is not None  # scores are a user's function's
        self.picture = LivePicture(config.steps, reward, config.evaluates, self.own)
        for text in metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []:
            self._take(json.loads(text))
        self._show(now=True)
        self.spent = 0.0  # the first picture is the price of having one

    def step(self, step: int, metrics: dict[str, float], left: float) -> None:
        """Shows step `step` (from 1), and that about `left` seconds are to come."""
        self.at, self.left, self.doing = step, clock(left), "train"
        self._take({"step": step, **metrics})
        self._show()

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Shows an evaluation."""
        self.doing = "train"
        self._take({"step": step, **metrics})
        self._show(now=True)

    def evaluating(self, done: int, total: int) -> None:
        """Shows how far an evaluation is."""
        self.doing = f"evaluate {done:,}/{total:,}"
        self._show()

    def say(self, text: str) -> None:
        """Prints a line."""
        print(text, flush=True)

    def close(self) -> None:
        """Shows the last state, in a picture that is worth keeping."""
        if not self.closed:
            self.closed = True
            self._show(now=True)
            self._draw(FINAL_DPI)

    def _take(self, line: dict[str, Any]) -> None:
        self.picture.add(line)
        if "loss" in line:
            self.figures = {
                "loss": f"{float(line['loss']):+.4f}",
                "reward": f"{float(line['reward/mean']):+.3f}",
                "KL": f"{float(line.get('kl/train', 'nan')):.3f}",
                "gradient norm": f"{float(line['optim/grad_norm']):.3f}",
                "tokens/s": f"{line['time/tokens_per_second']:,.0f}",
                "length": f"{line['rollout/length']:.0f}",
                "stop": f"{line['rollout/stop_share']:.1%}",
            }
        for key, value in line.items():
            if key.startswith("eval/avg@"):
                name = "mean score" if self.own else "Avg@" + key.partition("@")[2]
                self.score[name] = f"{value:{'.3f' if self.own else '.1%'}} at step {line['step']}"
        if "eval/kl" in line:
            self.score["held-out KL"] = f"{float(line['eval/kl']):.3f} at step {line['step']}"

    def _show(self, now: bool = False) -> None:
        time_now = time.monotonic()
        if not now and time_now - self.shown < SECONDS:
            return
        self.shown = time_now
        text = f"step {self.at:,} of {self.total:,}"
        if self.closed:
            text += f", {clock(time_now - self.started)}"
        else:
            text = f"{self.doing}: {text}, ETA {self.left}"
        self.panel.show(bar(text, self.at, self.total, self.score | self.figures))
        # Counted with the redraw to come, so that the share holds after it too.
        affordable = self.spent + self.price <= REDRAW_SHARE * (time_now - self.started)
        if affordable and self.drawn + SECONDS <= time_now and not self.closed:
            self._draw()

    def _draw(self, dpi: int = 80) -> None:
        self.drawn = time.monotonic()
        png = base64.b64encode(self.picture.png(dpi)).decode()
        text = f"<rewards, accuracy, gradient norm and length of {self.at:,} steps>"
        self.picture_panel.show({"image/png": png, "text/plain": text})
        self.price = time.monotonic() - self.drawn
        self.spent += self.price


INK = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers too
KEPT = 1000  # points of a line, at most: of a longer run every second (third, ...) step is drawn
ABOVE = {  # a legend beside its panel's title, where no line can come
    **{"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2, "borderpad": 0, "handlelength": 1.6},
    **{"frameon": False, "fontsize": "small", "ncols": 2, "columnspacing": 1.2},
}
STEP = ("reward/mean", "reward/p05", "reward/p95", "optim/grad_norm", "rollout/length", "kl/train")


class LivePicture:
    """A figure of four panels over the steps 0 to `total`. `add` takes lines of metrics.jsonl, `png` draws.

    One panel is the accuracy (of a user's `own` function the mean score) or, where nothing is `scored`, the KL to the teacher.
    """

    def __init__(self, total: int, reward: str, scored: bool = True, own: bool = False) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Polygon
        from matplotlib.ticker import MaxNLocator

        self.scored, self.own = scored, own
        self.steps: list[int] = []
        self.values: dict[str, list[float]] = {name: [] for name in STEP}
        self.evaluations: list[tuple[int, float, float]] = []  # step, Avg@k, greedy
        self.unseen: list[tuple[int, float]] = []  # step, KL on held-out prompts
        self.figure = Figure(figsize=(9.6, 4.6))
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.subplots(2, 2)
        self.figure.subplots_adjust(left=0.07, right=0.985, top=0.93, bottom=0.105, wspace=0.17, hspace=0.42)
        (pay, right), (slope, size) = self.axes
        self.band = pay.add_patch(Polygon([[0, 0]], color=INK[0], alpha=0.2, linewidth=0, label="5 to 95% of tokens"))
        self.lines = {
            "reward/mean": pay.plot([], [], color=INK[0], label="mean")[0],
            "avg": right.plot([], [], "o-", color=INK[2], markersize=5, clip_on=False)[0],
            "greedy": right.plot([], [], "s--", color=INK[3], markersize=4, clip_on=False, label="greedy")[0],
            "kl/train": right.plot([], [], color=INK[0], label="rollouts")[0],
            "eval/kl": right.plot([], [], "o", color=INK[1], markersize=5, clip_on=False, label="held out")[0],
            "optim/grad_norm": slope.plot([], [], color=INK[1])[0],
            "rollout/length": size.plot([], [], color=INK[0])[0],
        }
        pay.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        slope.set_yscale("log")
        slope.yaxis.set_minor_formatter(lambda *_: "")  # the whole decades are labelled
        titles = (
            f"reward ({reward})",
            "score of held-out prompts" if own else "held-out problems answered right",
            "gradient norm",
            "completion length, tokens",
        )
        for axes, title in zip(self.axes.flat, titles, strict=True):
            axes.set_title(title, fontsize="medium", loc="left")
            axes.set_xlim(0, max(1, total))
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
            axes.spines[["top", "right"]].set_visible(False)
        for axes in self.axes[1]:
            axes.set_xlabel("step")
        pay.legend(**ABOVE)

    def add(self, line: dict[str, Any]) -> None:
        """Takes a step's metrics or an evaluation's."""
        if "loss" in line:
            self.steps.append(line["step"])
            for name, values in self.values.items():
                values.append(float(line.get(name, "nan")))  # what JSON can't hold stands there as text
        average = next((key for key in line if key.startswith("eval/avg@")), None)
        if average:
            if not self.evaluations:
                self.lines["avg"].set_label("mean" if self.own else average.removeprefix("eval/").capitalize())
            self.evaluations.append((line["step"], line[average], line["eval/greedy"]))
        if "eval/kl" in line:
            self.unseen.append((line["step"], float(line["eval/kl"])))
            self.scored = self.scored and average is not None

    def png(self, dpi: int = 80) -> bytes:
        """Draws what was added so far."""
        every = math.ceil(len(self.steps) / KEPT) or 1
        first = (len(self.steps) - 1) % every  # so that the latest step is among them
        steps = self.steps[first::every]
        values = {name: numbers[first::every] for name, numbers in self.values.items()}
        for name in ("reward/mean", "rollout/length"):
            self.lines[name].set_data(steps, values[name])
        self.lines["optim/grad_norm"].set_data(steps, [x if x > 0 else math.nan for x in values["optim/grad_norm"]])
        low, high = values["reward/p05"], values["reward/p95"]
        inside = [i for i in range(len(steps)) if math.isfinite(low[i]) and math.isfinite(high[i])]
        corners = [(steps[i], low[i]) for i in inside] + [(steps[i], high[i]) for i in reversed(inside)]
        self.band.set_xy(corners or [(0, 0)])
        for i, name in enumerate(("avg", "greedy"), 1):
            self.lines[name].set_data([e[0] for e in self.evaluations], [e[i] for e in self.evaluations])
        (pay, right), (slope, size) = self.axes
        if self.scored and self.own:
            _fit(right, [0.0, *(value for e in self.evaluations for value in e[1:])])
        elif self.scored:
            right.set_ylim(0, 1)
            right.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        else:
            right.set_title("KL to the teacher, nats a token", fontsize="medium", loc="left")
            right.yaxis.set_major_formatter(lambda nats, _: f"{nats:g}")
            self.lines["kl/train"].set_data(steps, values["kl/train"])
            self.lines["eval/kl"].set_data([e[0] for e in self.unseen], [e[1] for e in self.unseen])
            _fit(right, [0.0, *values["kl/train"], *(e[1] for e in self.unseen)])
        _fit(pay, [0.0, *low, *high, *values["reward/mean"]])
        _fit(size, [0.0, *values["rollout/length"]])
        _fit_decades(slope, values["optim/grad_norm"])
        named = [self.lines[name] for name in (("avg", "greedy") if self.scored else ("kl/train", "eval/kl"))]
        if (self.evaluations or self.unseen) and right.get_legend() is None:
            right.legend(handles=named, **ABOVE)
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
        return file.getvalue()


def _fit(axes: Any, values: list[float]) -> None:
    finite = [x for x in values if math.isfinite(x)]
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - margin if low < 0 else low, high + margin)


def _fit_decades(axes: Any, values: list[float]) -> None:
    """Whole powers of ten, so that the scale has labels however little the norm moves."""
    finite = [x for x in values if math.isfinite(x) and x > 0]
    if finite:
        low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
        axes.set_ylim(10.0**low, 10.0 ** max(high, low + 1))
