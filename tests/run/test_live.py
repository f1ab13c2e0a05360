"""Training in a real Jupyter kernel: what is shown, what stays in the saved notebook, the stop button, and a resume in the next cell."""

import base64
import io
import json
import os
import queue
import re
import time
from pathlib import Path

import pytest
from conftest import QUICK

from poweropd_lite.run.live import LivePicture

ROOT = Path(__file__).parents[2]
SOME_STEPS = re.compile(r"step ([3-9]|\d\d+) of")  # which step a redraw shows depends on how fast the steps are


class Cell:
    """The outputs of a cell that runs in a kernel, as a front end would show them."""

    def __init__(self) -> None:
        self.text = ""
        self.warned = ""
        self.shown: dict[str, dict] = {}  # by display id: what stands there now
        self.updates: dict[str, list[float]] = {}  # when it was shown anew
        self.error = None

    def take(self, message) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            if content["name"] == "stdout":
                self.text += content["text"]
            else:
                self.warned += content["text"]
        elif kind in ("display_data", "update_display_data"):
            name = content["transient"]["display_id"]
            assert (kind == "display_data") == (name not in self.shown)
            self.shown[name] = content["data"]
            self.updates.setdefault(name, []).append(time.monotonic())
        elif kind == "error":
            self.error = "\n".join(content["traceback"])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel in a folder of its own, as Jupyter starts one."""
    from jupyter_client.manager import start_new_kernel

    folder = tmp_path_factory.mktemp("kernel")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder), env=env)
    yield manager, client, folder
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run_cell(kernel, code, until=lambda cell: False, then=lambda: None):
    """Runs a cell to its end and returns what it shows; `then` is called once `until` is true of it."""
    _, client, _ = kernel
    asked, cell, called = client.execute(code), Cell(), False
    end = time.monotonic() + 200
    while time.monotonic() < end:
        try:
            message = client.get_iopub_msg(timeout=1)
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") != asked:
            continue
        cell.take(message)
        if not called and until(cell):
            called = True
            then()
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return cell
    raise AssertionError(f"the cell did not end; it said: {cell.text}")


def start(output, **changes):
    settings = {**QUICK, **changes, "output": output}
    return (
        "from poweropd_lite.config import load_config\nfrom poweropd_lite.train import train\n"
        f"results = train(load_config('bundled', **{settings!r}))\n"
    )


def test_a_run_is_shown_as_a_bar_and_one_picture(kernel):
    cell = run_cell(kernel, start("shown") + "import sys; print('widgets', 'ipywidgets' in sys.modules)")
    assert cell.error is None and cell.warned == ""
    bar, picture = cell.shown.values()
    assert bar["text/plain"].startswith("step 4 of 4, 0:")
    assert '<progress max="4" value="4"' in bar["text/html"]
    _, _, folder = kernel
    metrics = [json.loads(line) for line in (folder / "shown" / "metrics.jsonl").read_text().splitlines()]
    last, scores = metrics[-2], metrics[-1]
    for words in (
        f"loss {last['loss']:+.4f}",
        f"reward {last['reward/mean']:+.3f}",
        f"gradient norm {last['optim/grad_norm']:.3f}",
        f"stop {last['rollout/stop_share']:.1%}",
        f"Avg@2 {scores['eval/avg@2']:.1%} at step 4",
    ):
        assert words in bar["text/plain"]
    assert base64.b64decode(picture["image/png"]).startswith(b"\x89PNG")
    assert re.findall(r"evaluation at step (\d)", cell.text) == ["0", "2", "4"]  # below, as lines
    assert "\x1b" not in cell.text and "step 1/4" not in cell.text


def test_the_stop_button_saves_and_a_resume_in_the_next_cell_goes_on(kernel):
    manager, _, folder = kernel
    cell = run_cell(
        kernel,
        start("stopped", steps=400, eval_every=0, save_every=400) + "print('the run has ended')",
        until=lambda cell: any(SOME_STEPS.search(bundle["text/plain"]) for bundle in cell.shown.values()),
        then=manager.interrupt_kernel,
    )
    # An error, so that "run all" ends here instead of going on to the cells below.
    assert cell.error == "stopped; the cells below were not run"
    assert "stopping after this step, then saving" in cell.text
    taken = int(re.search(r"stopped at step (\d+) of 400", cell.text)[1])
    assert 3 <= taken < 400
    assert "the run has ended" not in cell.text
    assert "go on:       train(resume='stopped')" in cell.text
    assert "go on:       python -m poweropd_lite.train --resume stopped" in cell.text
    assert [p.name for p in (folder / "stopped" / "checkpoints").iterdir()] == [f"step_{taken:06}"]
    assert (folder / "stopped" / "adapter" / "adapter_model.safetensors").is_file()
    bar = next(iter(cell.shown.values()))
    assert bar["text/plain"].startswith(f"step {taken} of 400, 0:")

    more = run_cell(
        kernel, f"results = train(resume='stopped', steps={taken + 2})\nprint('finished', results.finished)"
    )
    assert more.error is None and f"resuming stopped at step {taken} of {taken + 2}" in more.text
    assert "finished True" in more.text
    metrics = [json.loads(line) for line in (folder / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "loss" in line] == list(range(1, taken + 3))
    assert next(iter(more.shown.values()))["text/plain"].startswith(f"step {taken + 2} of {taken + 2}")


def test_an_error_for_the_user_has_no_traceback(kernel):
    cell = run_cell(kernel, "train(resume='nowhere')")
    assert cell.error == "error: nowhere is not a run folder (it has no config.yaml); type --resume with one"


def test_counted_things_are_a_bar_too(kernel):
    code = (
        "from poweropd_lite.evaluate.settings import load_eval_config\nfrom poweropd_lite.evaluate import evaluate\n"
        "done = evaluate(load_eval_config(model='shown', problems=4, n=2))"
    )
    cell = run_cell(kernel, code)
    assert cell.error is None and cell.warned == ""
    assert [bundle["text/plain"] for bundle in cell.shown.values()] == ["bundled  8/8"]


def test_the_stop_button_ends_an_evaluation_too(kernel):
    code = "done = evaluate(load_eval_config(model='shown', problems=256, n=8, output='half'))\nprint('evaluated')"
    cell = run_cell(kernel, code, until=lambda cell: bool(cell.shown), then=kernel[0].interrupt_kernel)
    assert cell.error == "stopped; the cells below were not run" and "evaluated" not in cell.text
    assert not (kernel[2] / "half" / "results.json").exists()


def test_redraws_take_no_more_than_their_share(kernel):
    """A clock of its own: a second a look, a redraw of half a second, 200 looks."""
    code = """
from pathlib import Path
from poweropd_lite.run import live
class Clock:
    now = 0.0
    def monotonic(self): return self.now
clock = live.time = Clock()
class Slow(live.LivePicture):
    drawn = []
    def png(self, dpi=80):
        self.drawn.append(clock.now)
        clock.now += 0.5
        return b"picture"
live.LivePicture = Slow
run = live.LiveRun(load_config("bundled", steps=1000), 0, Path("none"))
for i in range(200):
    clock.now += 1.0
    run._show()
print(Slow.drawn)
"""
    cell = run_cell(kernel, code)
    assert cell.error is None, cell.error
    drawn = json.loads(cell.text)
    assert drawn[0] == 0.0 and len(drawn) - 1 == 8  # 8 x 0.5 s of 204 s; a ninth would be more than 2%
    assert all(0.5 * n <= 0.02 * (at + 0.5) for n, at in enumerate(drawn[1:], 1))


def test_the_picture_holds_the_numbers_and_is_drawn_whole():
    import matplotlib.image

    picture = LivePicture(10, "power, alpha 10")
    picture.add({"step": 0, "eval/avg@8": 0.25, "eval/greedy": 0.5, "time/evaluate": 1.0})
    for step, (norm, mean) in enumerate([(0.2, -0.5), ("nan", "nan"), (0.02, 0.125)], 1):
        line = {"step": step, "loss": 0.1, "reward/mean": mean, "reward/p05": -1, "reward/p95": 0.5}
        picture.add(line | {"optim/grad_norm": norm, "rollout/length": 40 + step})
    pixels = matplotlib.image.imread(io.BytesIO(picture.png()), format="png")
    assert pixels.shape[:2] == (368, 768)
    drawn = {name: [list(map(float, axis)) for axis in line.get_data()] for name, line in picture.lines.items()}
    assert drawn["avg"] == [[0.0], [0.25]] and drawn["greedy"] == [[0.0], [0.5]]
    assert drawn["rollout/length"] == [[1.0, 2.0, 3.0], [41.0, 42.0, 43.0]]
    assert drawn["optim/grad_norm"][1][::2] == [0.2, 0.02] and drawn["optim/grad_norm"][1][1] != 0.0
    assert picture.axes[1, 0].get_ylim() == (0.01, 1.0)  # whole decades
    assert picture.band.get_xy().tolist()[:4] == [[1, -1], [2, -1], [3, -1], [3, 0.5]]
