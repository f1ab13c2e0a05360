"""Hostile answers: refused or ended, never a crash, never right; and the processes themselves."""

import os
import random
import signal
import subprocess
import time
import tracemalloc

import forked
import pytest

from poweropd_lite.grade import Sample, grade, is_correct, is_hostile
from poweropd_lite.grade.judges import Judges, Question, judges


def hostile_answers(count: int) -> list[str]:
    """Towers, factorials, megabytes, thousands of braces, null bytes, lone surrogates, code and slow algebra."""
    rng = random.Random(0)
    made = []
    while len(made) < count:
        a, b, c = (rng.randint(2, 99) for _ in range(3))
        made += [
            f"{a}^{{{b}^{{{c}^{{{a}}}}}}}",
            f"{a}^{b}^{c}",
            f"{a}**{b}**{c}**{a}",
            f"{10 ** rng.randint(3, 12)}!",
            f"((({a}!)!)!)!",
            "{" * 5000 + str(a) + "}" * 5000,
            "(" * rng.randint(40, 5000),
            str(a) * 500_000,
            "x" * 10**6,
            "\0" * a + "5",
            f"\ud800{a}",
            f"__import__('os').system('touch hacked{a}')",
            f"\\sum_{{n=1}}^{{10^{{{a}}}}} n!",
            f"\\int_0^{{{a}}} \\sin(x^{{x^{{{b}}}}}) e^{{-x^2}} dx",
            f"\\prod_{{k=1}}^{{{10 ** rng.randint(6, 9)}}} k",
            f"\\binom{{10^{{{a}}}}}{{10^{{{b}}}}}",
            "+".join(f"\\sqrt{{{p}+x}}" for p in range(2, 60)),
            "\\frac{1}{" * 28 + str(a) + "}" * 28,
            "," * 900,
            "\\\\" * 400,
        ]
    return made[:count]


def test_hostile_answers_are_never_right_and_harm_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answers = hostile_answers(100)
    golds = ["5", "\\frac{x}{2}+\\sqrt{3}", "(1,2]", "\\text{east}"]
    verdicts = grade([Sample(f"\\boxed{{{a}}}", golds[i % 4]) for i, a in enumerate(answers)])
    assert not [a[:60] for a, v in zip(answers, verdicts, strict=True) if v.correct]
    assert sum(v.undecided for v in verdicts) > 33  # and they are counted
    assert not list(tmp_path.iterdir())  # no code was run
    assert is_correct("\\boxed{x+1}", "1+x")  # the processes are well


@pytest.mark.parametrize(
    "answer", ["9^{9^{9^{9}}}", "9**99**99", "100000!", "((9!)!)!", "9" * 500, "{" * 31, "x" * 1001, "5\0"]
)
def test_refused_unread(answer):
    assert is_hostile(answer)


@pytest.mark.parametrize(
    "answer", ["2^{1009}", "10^{100}", "2^{3^4}", "20!", "\\frac{(2n)!}{n!}", "x" * 300, "10^{10^{2}}"]
)
def test_large_but_honest(answer):
    assert not is_hostile(answer)
    assert is_correct(f"\\boxed{{{answer}}}", answer.replace("20!", "2432902008176640000"))


@pytest.mark.parametrize(
    "text",
    ["answer is" + " " * 10**6, "answer " * 10**5, "\\boxed{" * 10**5, "{" * 10**6, "\\" * 10**6, "\\boxed{" + " " * 10**6 + "}", "#" * 10**6, "1,111" * 10**5],
    ids=lambda text: text[:10].strip(),
)  # fmt: skip
def test_a_megabyte_is_read_in_linear_time(text):
    started = time.monotonic()
    assert not is_correct(text, "5", "gsm8k")
    assert time.monotonic() - started < 20  # quadratic would be hours


def test_what_can_not_be_decided_in_time_is_said():
    # About ten seconds of quadrature, ten times the limit.
    integral = "\\int_0^1 \\int_0^1 \\int_0^1 x^{y^{z}} e^{\\sin(x^{30} y z)} dx dy dz"
    (verdict,) = grade([Sample(f"\\boxed{{{integral}}}", "\\frac{1}{2}")])
    assert (verdict.correct, verdict.undecided) == (False, True)


def test_a_killed_worker_or_parent_costs_one_answer_at_most():
    mine = Judges(2)
    questions = [Question("x+1", f"{i}+x-{i - 1}") for i in range(2, 42)]
    assert mine.decide(questions) == [True] * 40
    children = subprocess.run(["pgrep", "-P", str(mine.process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)
    assert mine.decide(questions).count(True) >= 39
    mine.process.kill()
    mine.process.wait()
    assert mine.decide(questions) == [True] * 40  # a new parent
    mine.close()
    assert mine.process.poll() is not None


def test_without_fork_the_reason_is_said(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(
        RuntimeError, match=r"^computer algebra is done in forked processes, and this system \(linux\) has no fork: "
    ):
        Judges(1)


def test_the_processes_end_with_the_program_however_it_ends(tmp_path):
    code = (
        "import os, signal\nfrom poweropd_lite.grade import is_correct\nfrom poweropd_lite.grade.judges import judges\n"
        "assert is_correct('\\\\boxed{x+1}', '1+x')\nprint(judges().process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = forked.run("-c", code, cwd=tmp_path)
    parent = int(done.stdout)
    for _ in range(100):
        if not os.path.exists(f"/proc/{parent}"):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {parent} outlives the program")


def test_a_forked_child_has_judges_of_its_own():
    ours = judges().process.pid
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"1" if is_correct("\\boxed{x+1}", "1+x") and judges().process.pid != ours else b"0")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"1" and is_correct("\\boxed{x+2}", "2+x") and judges().process.pid == ours


def test_boxes_in_boxes_and_long_golds_take_little_memory():
    """800 kB of them: each box's text, cut out, would be 40 GB."""
    boxes = "\\boxed{" * 100_000 + "1" + "}" * 100_000
    golds = "\\boxed{1}", "1," * 100_000, boxes
    tracemalloc.start()
    found = [is_correct(boxes, "1"), *(is_correct("\\boxed{1}", gold) for gold in golds)]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [True, True, False, True] and most < 100e6
