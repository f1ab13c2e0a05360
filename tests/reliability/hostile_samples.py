"""Answers and golds that are meant to hang, to crash or to fool the grader; no two of a pair are the same."""

import random

from poweropd_lite.grade import Sample

_WORDS = (
    "\\frac{", "\\sqrt{", "\\sqrt[", "]{", "^{", "_{", "{", "}", "(", ")", "[", "]", "\\left(", "\\right)", "\\sum_{k=1}^{", "\\int_0^{",
    "\\prod_{", "\\lim_{x\\to", "\\binom{", "!", "+", "-", "*", "/", "=", "<", "\\le ", "\\pm ", ",", ";", "&", "\\\\", "%", "\\%", "$", "\\$",
    "\\text{", "\\mathrm{", "\\begin{cases}", "\\end{cases}", "\\begin{pmatrix}", "\\end{pmatrix}", "\\boxed{", "\\in ", "\\cup ", "\\infty ",
    "x", "y", "e", "i", "\\pi ", "7", "10", "999", "10^{99}", "0.", ".", "1/", "\\sin ", "\\log ", "|", "\\dot{", "'", "~", "\\,", " ",
)  # fmt: skip


def _tower(rng: random.Random) -> str:
    a, b, c = (rng.randint(2, 99) for _ in range(3))
    big = 10 ** rng.randint(3, 12)
    return rng.choice(
        [
            f"{a}^{{{b}^{{{c}^{{{a}}}}}}}", f"{a}**{b}**{c}", f"{big}!", f"((({a}!)!)!)!", f"\\binom{{{big}}}{{{big // 2}}}",
            f"\\sum_{{n=1}}^{{{big}}} n!", f"\\prod_{{k=1}}^{{{big}}} k", f"\\int_0^{{{a}}} \\sin(x^{{x^{{{b}}}}}) e^{{-x^2}} dx",
            f"\\log_{{{a}}} {b}^{{{big}}}", f"({a}x+{b})^{{{rng.randint(50, 999)}}}", f"e^{{e^{{e^{{{a}}}}}}}", f"{a}e{big}",
            f"\\frac{{{a}}}{{" * 25 + "1" + "}" * 25, "+".join(f"\\sqrt{{{p}+x}}" for p in range(2, rng.randint(20, 60))),
            f"\\gamma({big})", f"\\lfloor {a}^{{{big}}} \\rfloor", f"x^{{{big}}}-1", f"\\sin({big}^{{{a}}})",
        ]
    )  # fmt: skip


def _long(rng: random.Random) -> str:
    n = rng.choice([900, 5_000, 50_000, 500_000])
    unit = rng.choice(
        [
            "7",
            "x",
            ",",
            "(",
            "{",
            "\\\\",
            " ",
            "1,",
            "\\text{a}",
            "=",
            "&",
            "\\frac",
            "-",
            "1+",
            "'",
            "\\boxed{",
            "####",
            "answer is ",
            "\n",
        ]
    )
    return (unit * n)[:n]


def _odd(rng: random.Random) -> str:
    parts = [
        "\0",
        "\ud800",
        "\u202e",
        "\x1b[2J",
        "٣",
        "²",
        "Ⅷ",
        "１２",
        "\u200b",
        "é",
        "😀",
        "ﷺ",
        "𝟕",
        "∑",
        "√",
        "½",
        "’",
        "－",
    ]
    return "".join(rng.choices([*parts, "1", "x", "+"], k=rng.randint(1, 40)))


def _soup(rng: random.Random) -> str:
    return "".join(rng.choices(_WORDS, k=rng.randint(2, 80)))


def _code(rng: random.Random) -> str:
    a = rng.randint(2, 99)
    return rng.choice(
        [
            f"__import__('os').system('touch it-ran{a}')", f"eval('{a}**{a}**{a}')", f"().__class__.__bases__[0].__subclasses__()[{a}]",
            f"\\input{{/etc/passwd{a}}}", f"lambda: {a}", f"Symbol('x')**{a}e9", f"open('it-ran{a}','w')", f"{{{{{a}*{a}}}}}", f"%{a}n%s",
        ]
    )  # fmt: skip


KINDS = (_tower, _long, _odd, _soup, _code)
PLAIN = (
    "\\frac{7919}{104729}+\\sqrt{13}x",
    "(1,2]",
    "\\text{east}",
    "5",
    "\\{1,2,3\\}",
    "x=7919",
    "50\\%",
    "7919\\text{ cm}",
)
FRAMES = (
    "So \\boxed{%s}.",
    "The answer is %s",
    "#### %s",
    "%s",
    "\\boxed{%s} and \\boxed{%s}",
    "\\boxed{\\boxed{%s}}",
    "\\boxed{%s",
)


def hostile_samples(count: int, seed: int = 0) -> list[Sample]:
    """Returns samples of which none is right: a hostile answer to a plain gold, a plain one to a hostile gold, two hostile ones.

    What a soup of symbols may mean can't be known, so its gold is one that no few symbols make.
    """
    rng, made = random.Random(seed), []
    while len(made) < count:
        kind, frame = KINDS[len(made) % len(KINDS)], rng.choice(FRAMES)
        plain, hostile = rng.choice(PLAIN[:1] if kind in (_soup, _odd) else PLAIN[:3]), kind(rng)
        which = rng.randrange(4)
        gold, answer = (
            (plain, hostile) if which < 2 else (hostile, PLAIN[0]) if which == 2 else (hostile, _tower(rng) + "+7919q")
        )
        completion = frame.replace("%s", answer)
        made.append(Sample(completion, gold, rng.choice([None, "gsm8k", "math500"]), rng.choice([None, None, 0.1])))
    return made
