r"""The grader: what counts as the answer, and when two answers are the same, by families of cases.

A line is gold | right answers | wrong answers, the latter two divided by ` ;; `. Each answer stands in a box.
"""

import threading

import pytest

from poweropd_lite.grade import Sample, grade, is_correct
from poweropd_lite.grade.answers import boxed_answer, final_answer, neighbouring_boxes
from poweropd_lite.grade.official import official_candidate

FAMILIES = {
    "integers": r"""
        42 | 42 ;; 42. ;; $42$ ;; +42 ;; 042 ;; 42.0 ;; \text{42} ;; \mathbf{42} ;; 42\! | 4 ;; -42 ;; 24 ;; 42.5 ;; 420 ;; \text{x}
        025 | 25 ;; 025 | 250 ;; 52
        0 | 0 ;; -0 ;; 0.0 | 1 ;; 10^{-10} ;; \emptyset
        1000000 | 1000000 ;; 1,000,000 ;; 10^6 | 1000001 ;; 100000
    """,
    "thousands": r"""
        58,500 | 58500 ;; 58,500 ;; 58{,}500 ;; 58\,500 ;; 58,\!500 | 58.5 ;; 5850 ;; 585,00
        10,\!080 | 10080 ;; 10,080 | 10,81
        11,\! 111,\! 111,\! 100 | 11111111100 ;; 11,111,111,100 | 1111111100
        3, 5, 7 | 3,5,7 ;; 7, 5, 3 | 357 ;; 3,5
        100, 200 | 200, 100 ;; 100, 200 | 100 ;; 300 ;; 100,200
    """,
    "e-notation": r"""
        4.5e33 | 4.5 \times 10^{33} ;; 4.5\cdot10^{33} ;; 4.5*10^33 ;; 4.5E33 ;; 45 \times 10^{32} | 4.5e34 ;; 4.6 \times 10^{33} ;; 4.5
        1e-5 | 10^{-5} ;; 0.00001 ;; 1 \times 10^{-5} | 0 ;; 1e-6 ;; 2e-5
        1.39e-10 | 1.39 \times 10^{-10} ;; 1.39\cdot 10^{-10}\text{ m} | 0 ;; 2e-10 ;; 1.4e-10
        6.5e-2 | 0.065 ;; 6.5\times10^{-2} | 0.65 ;; 0.06
        3e8 | 3 \times 10^8 \text{ m/s} ;; 3\times10^{8}\,\mathrm{m/s} ;; 300,000,000 ;; 300000000 | 3e9
        10^{-20} | 10^{-20} ;; 1e-20 | 2\times 10^{-20} ;; 0
    """,
    "decimals and fractions": r"""
        \frac43 | 4/3 ;; \frac{4}{3} ;; \dfrac43 ;; 1.333333 ;; 1\frac{1}{3} | 1.33 ;; 3/4 ;; \frac{4}{33} ;; 43
        \frac 59 | \frac{5}{9} ;; 5/9 | 59 ;; 9/5
        .0000672 | 6.72\times 10^{-5} ;; 0.0000672 | 0.000067 ;; 0
        .35625 | 0.35625 ;; 57/160 | 0.356
        -1./3 | -1/3 ;; -\frac{1}{3} | 1/3 ;; -0.33
        1\frac{4}{5} | 9/5 ;; 1.8 ;; \frac{9}{5} | \frac{4}{5} ;; 14/5
        137 \frac{1}{2} | 137.5 ;; \frac{275}{2} | 137 ;; 68.5
        0.5 | \frac12 ;; 1/2 ;; .5 ;; \frac{2}{4} | 5 ;; 0.05 ;; 0.51
    """,
    "roots and constants": r"""
        3\sqrt{13} | 3\sqrt{13} ;; \sqrt{117} ;; 3 \sqrt 13 | 3 ;; 3\sqrt{17} ;; \sqrt{13} ;; 13
        \sqrt{51} | \sqrt{51} ;; 51^{1/2} ;; 7.1414284 | \sqrt{15} ;; 51 ;; 7.14
        11\sqrt2 | 11\sqrt{2} ;; \frac{22}{\sqrt2} | 22
        \pi | \pi ;; 3.14159265 ;; π | 3.14 ;; 2\pi ;; 22/7
        18+2\pi | 2\pi+18 ;; 2(\pi+9) | 20\pi
        288 \pi | 288\pi \text{ cm}^3 ;; 288π | 288
        2^{1009} | 2^{1009} ;; 2^{1010}/2 | 2 ;; 2^{1010} ;; 1009
        5! | 120 ;; 5! | 5 ;; 24
        \log_2 8 | 3 | 2 ;; 8
        \infty | \infty ;; ∞ | 5 ;; -\infty
    """,
    "money": r"""
        \$18.90 | 18.90 ;; 18.9 ;; \$18.90 ;; $18.90 | 1890 ;; 18
        \$32,\!348 | 32348 ;; \$32,348 ;; 32,348 \text{ dollars} | 32.348 ;; 3234
        \$36 | 36 ;; 36 dollars ;; \$36.00 | 63
    """,
    "units": r"""
        5.4 \text{ cents} | 5.4 ;; 5.4 cents ;; 5.4\text{ cents} | 54 ;; 0.054
        864 \mbox{ inches}^2 | 864 ;; 864 \text{ square inches} ;; 864\text{ in}^2 | 846
        15\mbox{ cm}^2 | 15 cm^2 ;; 15\,\text{cm}^2 ;; 15 \mathrm{~cm}^2 ;; 15 | 225 ;; 51
        60 | 60 mph ;; 60\text{ km/h} ;; 60 miles per hour ;; 60 m/s | 6 ;; 60 million
        5 | 5 m ;; 5 apples ;; 5\text{ meters} | 5 million ;; 5x ;; 5 \pi
        \frac{37}{4} m | \frac{37m}{4} ;; 9.25 m | \frac{37}{4} ;; 37m
        7.6 Z | 7.6Z | 7.6
    """,
    "degrees": r"""
        90^\circ | 90 ;; 90^{\circ} ;; 90 degrees ;; 90° ;; 90\text{ degrees} | 80^\circ ;; 9 ;; 900
        \frac{270}7\text{ degrees} | \frac{270}{7} ;; \frac{270}{7}^\circ | \frac{7}{270}
        90^{\circ}$,$60^{\circ} | 60^\circ, 90^\circ ;; 90, 60 | 90^\circ
    """,
    "percent": r"""
        50\% | 50 ;; 0.5 ;; \frac{1}{2} ;; 50% ;; 50 \% ;; 50 percent | 5 ;; 0.05 ;; 5\%
        50 | 50\% ;; 50 percent | 0.5 ;; 5\%
        0.5 | 50\% ;; 50% | 50 ;; 0.5\%
    """,
    "words": r"""
        \text{Evelyn} | Evelyn ;; evelyn ;; \text{Evelyn} ;; \textbf{Evelyn} | \text{Navin} ;; Eve ;; 5
        \text{even} | even ;; \mathrm{even} ;; Even | odd ;; neve ;; e \cdot v \cdot e \cdot n ;; 2
        \text{east} | east ;; \text{East} | west ;; seat ;; 3
        \text{no solution} | no solution ;; \text{No solution} | 0 ;; \text{one solution}
        \text{yes} | Yes ;; yes | no
    """,
    "choices": r"""
        \text{(C)} | C ;; (C) ;; \textbf{(C)} ;; \text{C} ;; c | (D) ;; B ;; 3
        A | A ;; \text{A} ;; (A) | B ;; AA
    """,
    "lists and sets": r"""
        \{1,2\} | \{2,1\} ;; 1,2 ;; 2, 1 ;; 1 and 2 ;; \left\{1, 2\right\} | \{1,2,3\} ;; 1 ;; (1,3) ;; 12
        1,-2 | -2,1 ;; x=1,-2 ;; x=1, x=-2 ;; x=1 \text{ or } x=-2 ;; 1 \text{ and } -2 | 1 ;; -2 ;; 1,2 ;; -1,2
        3, 5, 7 | 7,5,3 ;; \{3,5,7\} ;; 3, 5, \text{ and } 7 ;; 3,5 and 7 | 3,5 ;; 3,5,7,9
        1 \pm \sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19} ;; 1-\sqrt{19},1+\sqrt{19} ;; 1\pm\sqrt{19} | 1+\sqrt{19} ;; 1 \pm 19
        \{1\pm\sqrt{5},-2\} | \{-2, 1+\sqrt5, 1-\sqrt5\} ;; -2, 1 \pm \sqrt{5} | 1\pm\sqrt{5}
        3,-3 | \pm 3 ;; \pm3 ;; -3, 3 | 3 ;; 9
        (0,2),(0,-2) | (0,-2),(0,2) ;; \{(0,2),(0,-2)\} ;; (0,2) and (0,-2) | (2,0),(-2,0) ;; (0,2)
        69$,$84 | 69, 84 ;; 84,69 | 6984 ;; 69
        f(x)=-1$,$f(x)=x+1 | f(x)=x+1, f(x)=-1 ;; f(x)=-1 \text{ and } f(x)=x+1 | f(x)=-1 ;; f(x)=x+1, f(x)=1
        a=2$, $a=-6-4 \sqrt{2} | 2, -6-4\sqrt{2} ;; a=-6-4\sqrt2, a=2 | 2
        E_{1},E_{2} | E_1, E_2 ;; E_{2}, E_{1} | E_1
    """,
    "points": r"""
        (1,2) | (1,2) ;; (1, 2) ;; \left(1,2\right) ;; 1,2 ;; x=1, y=2 | (2,1) ;; [1,2] ;; \{1,2\} ;; (1,2,3) ;; 1
        \left( 3, \frac{\pi}{2} \right) | (3, \pi/2) ;; (3,\frac{\pi}{2}) | (3, \pi) ;; (\frac{\pi}{2}, 3)
        (6,31,-1) | (6, 31, -1) | (6,31,1) ;; (6,31)
        (15,-29) | (15,-29) | (-29,15) ;; (15,29)
    """,
    "intervals": r"""
        (3,4] | (3,4] ;; \left(3,4\right] | (3,4) ;; [3,4] ;; [3,4) ;; 3,4 ;; (3,5]
        (-\infty, 2) \cup (3, \infty) | (3,\infty)\cup(-\infty,2) ;; (-\infty,2)\cup (3,+\infty) | (-\infty,2]\cup(3,\infty) ;; (-\infty,2) ;; (2,3)
        (2,\infty) | x>2 ;; (2, ∞) ;; x \in (2,\infty) | x \ge 2 ;; [2,\infty) ;; (2,5) ;; 2
        x>2 | (2,\infty) ;; x > 2 ;; 2 < x | x<2 ;; [2,\infty)
        x \in [-2,7] | [-2,7] ;; x\in[-2,7] ;; -2 \le x \le 7 | (-2,7) ;; [-2,7) ;; -2 < x < 7
        \left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right] | [\pi^2/8, 5\pi^2/4] | (\pi^2/8, 5\pi^2/4)
        (-\sqrt{3}, \sqrt{3}) | (-\sqrt3,\sqrt3) | (-3,3) ;; [-\sqrt{3}, \sqrt{3}]
    """,
    "number bases": r"""
        52_8 | 52_{8} ;; 52 ;; 52_8 | 42 ;; 52_9 ;; 25_8
        4210_{5} | 4210_5 | 4210_6 ;; 421
    """,
    "complex numbers": r"""
        6 - 5i | 6-5i ;; -5i+6 | 6+5i ;; 6 ;; 5i-6
        1+\sqrt{3} i | 1+i\sqrt{3} ;; 2e^{i\pi/3} | 1-\sqrt{3}i
        \frac{e^{2 i t}}{(2+2 i)} | \frac{1-i}{4}e^{2it} | \frac{1+i}{4}e^{2it}
    """,
    "matrices": r"""
        \begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix} | \begin{pmatrix} -\frac{1}{3} \\ \frac{2}{3} \\ \frac{5}{3} \end{pmatrix} ;; \begin{bmatrix} -1/3 \\ 2/3 \\ 5/3 \end{bmatrix} | \begin{pmatrix} 1/3 \\ 2/3 \\ 5/3 \end{pmatrix} ;; 5/3
        \begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} | \begin{pmatrix}-1&0\\0&-1\end{pmatrix} | \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}
    """,
    "expressions": r"""
        p - q | p-q ;; -q+p | q-p ;; p+q ;; p
        (a+5)(b+2) | ab+2a+5b+10 ;; (b+2)(a+5) | ab+10 ;; (a+2)(b+5)
        x^3+3x-6 | x^3 + 3x - 6 ;; -6+3x+x^3 | x^3+3x+6 ;; x^3
        2 | 2 | 2n-2 ;; 2n ;; n
        \cot x | \frac{\cos x}{\sin x} ;; \frac{1}{\tan x} | \tan x
        \frac{1}{m} t | \frac{t}{m} ;; t/m | \frac{1}{m} ;; mt
        \frac{R}{r} | R/r | 1 ;; r/R
        |x| | |x| | x ;; -x
        10^{-20}x | 10^{-20} x | 2\cdot 10^{-20}x ;; 0
        \frac{1}{3} E_{1}+\frac{2}{3} E_{2} | \frac{E_1+2E_2}{3} | \frac{2}{3} ;; E_1
        \binom{2n}{n} | \frac{(2n)!}{n!^2} | \binom{n}{2n} ;; 2n
        m n-\lfloor m / 2\rfloor | mn-\lfloor\frac{m}{2}\rfloor | mn-\frac{m}{2}
        \sqrt{2} \cos (2 t-\pi / 4) | \cos 2t + \sin 2t | \sqrt{2}\cos(2t+\pi/4)
        \frac{1}{2a}(\exp{a*t} - \exp{-a*t}) | \frac{\sinh(at)}{a} ;; \frac{e^{at}-e^{-at}}{2a} | \frac{e^{at}+e^{-at}}{2a}
        np.arcsin(10/13) | \arcsin(10/13) ;; \arcsin\frac{10}{13} | \arccos(10/13)
        x / 2-1 / 4+c e^{-2 x} | \frac{x}{2}-\frac{1}{4}+Ce^{-2x} | \frac{x}{2}+\frac{1}{4}+ce^{-2x}
        5 | 5 | garbage 5 ;; \text{about } 6 ;; x
    """,
    "equations": r"""
        x=5 | 5 ;; x = 5 ;; 5 = x | 6 ;; x=6
        7 | x=7 ;; 3+4=7 ;; x+y=7 | x=8 ;; 7=8
        y = 2x + 3 | 2x+3 ;; y=3+2x ;; 2x-y+3=0 | y=2x-3 ;; 2x ;; x=2y+3
        5x - 7y + 11z + 4 = 0 | 10x-14y+22z+8=0 ;; 5x-7y+11z=-4 ;; 7y-5x-11z=4 | 5x-7y+11z-4=0 ;; 5x-7y+11z
        x^2+1=0 | x^2=-1 | x^2+2=0
    """,
}


def cases():
    for family, text in FAMILIES.items():
        for line in filter(None, map(str.strip, text.splitlines())):
            # |x| is the one gold that holds the divider
            gold, right, wrong = line.split(" | ")
            for verdict, answers in ((True, right), (False, wrong)):
                for answer in answers.split(" ;; "):
                    yield family, gold.strip(), answer.strip(), verdict


@pytest.fixture(scope="module")
def verdicts():
    """Every case graded in one call."""
    every = list(cases())
    found = grade([Sample(f"So it is $\\boxed{{{answer}}}$.", gold) for _, gold, answer, _ in every])
    return list(zip(every, found, strict=True))


def test_there_are_enough_cases():
    assert len(list(cases())) >= 150 and len(FAMILIES) >= 15


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, verdicts):
    mine = [(case, found) for case, found in verdicts if case[0] == family]
    assert not [(case, found) for case, found in mine if found.correct != case[3]]
    assert not [case for case, found in mine if found.undecided]


def test_every_gold_is_its_own_answer():
    golds = list(dict.fromkeys(gold for _, gold, _, _ in cases()))
    assert all(v.correct for v in grade([Sample(f"\\boxed{{{gold}}}", gold) for gold in golds]))


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} then \boxed{ 2 }", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5} and \fbox{6}", "6"),
        (r"\boxed{1} but then \boxed{2", "1"),  # the last one never ends
        (r"{ \boxed{7}", "7"),  # the other brace is not the box's
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x : x > 0\right.}", r"\left\{x : x > 0\right."),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{}", None),
        (r"\boxed{42}. Put your answer in \boxed{}.", "42"),  # one who runs on into the next prompt
        (r"\boxed 5.", "5"),
        (r"\\boxed{5}", "5"),
        ("no box", None),
        ("", None),
    ],
)
def test_the_last_balanced_box(text, answer):
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    "text, benchmark, answer",
    [
        ("The answer is 42.", None, "42"),
        ("The final answer is: $x = 3.5$. I hope it is right.", None, "$x = 3.5$"),
        ("**Answer:** 7", None, "7"),
        ("Answer = 12\nMore text", None, "12"),
        ("The answer is 3, so we stop", None, "3"),
        (r"The answer is 4, that is \boxed{5}", None, "5"),  # a box counts first
        ("first the answer is 1. No: the answer is 2!", None, "2"),
        ("The answer is:\n\\[\n42\n\\]", None, "42"),
        ("It costs 5 dollars in all.\n#### 1,234", "gsm8k", "1,234"),
        ("The answer is correct.\n#### 18", "gsm8k", "18"),
        ("#### Step 4: total\n3+4=7. So 7 apples.", "gsm8k", "7"),
        ("10-18", "gsm8k", "18"),
        ("That makes 3 + 4 = 7 apples.", "gsm8k", "7"),
        ("She has 1,200 left", "gsm8k", "1,200"),
        ("That makes 3 + 4 = 7 apples.", None, None),
        ("nothing", "gsm8k", None),
    ],
)
def test_what_counts_as_the_answer(text, benchmark, answer):
    assert final_answer(text, benchmark) == answer


def test_gsm8k_answers_without_a_box():
    assert is_correct("She pays 3 * 6 = 18 dollars.", "18", "gsm8k")
    assert not is_correct("She pays 3 * 6 = 18 dollars.", "18")
    assert is_correct("A\n#### 70,000", "70000", "gsm8k") and not is_correct("18 is not 17", "18", "gsm8k")


def test_the_gold_answer_may_be_a_whole_solution():
    assert is_correct("\\boxed{72}", "She sold 48/2 = 24 ... altogether 48+24 = 72.\n#### 72", "gsm8k")
    assert is_correct("\\boxed{0.5}", "So it is $\\boxed{\\frac{1}{2}}$.") and not is_correct(
        "\\boxed{2}", "\\boxed{3}"
    )


def test_several_answers_may_stand_in_several_boxes():
    text = r"Hence $\boxed{1}$ and $x=\boxed{-2}$."
    assert neighbouring_boxes(text) == "1,-2"
    assert is_correct(text, "-2,1") and is_correct(text, "-2") and not is_correct(text, "1")
    assert not is_correct(r"First \boxed{1} is wrong. We compute again and get \boxed{-2}", "1,-2")


def test_no_answer_is_wrong_and_never_an_exception():
    for text in (
        "",
        " ",
        "\\boxed{}",
        "\\boxed{ }",
        "\\boxed{",
        "}",
        "\\boxed{\\frac}",
        "\\boxed{\\frac{1}{0}}",
        "\\boxed{0/0}",
    ):
        assert is_correct(text, "5") is False
    assert is_correct("\\boxed{5}", "") is False
    assert is_correct("\\boxed{nan}", "nan") and not is_correct("\\boxed{\\frac{1}{0}}", "\\frac{2}{0}")


def test_a_tolerance_only_where_one_is_given():
    assert is_correct("\\boxed{4.25}", "4.2", tolerance=0.1) and not is_correct("\\boxed{4.25}", "4.2")
    assert not is_correct("\\boxed{4.31}", "4.2", tolerance=0.1)
    assert is_correct("\\boxed{\\frac{43}{10}}", "4.2", tolerance=0.1)
    assert is_correct("\\boxed{3+\\sqrt{1.6}}", "4.2", tolerance=0.1)


def test_from_any_thread_and_as_often_as_asked():
    found = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(is_correct(f"\\boxed{{{i}x+{i}}}", f"{i}(x+1)")))
        for i in range(2, 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6


@pytest.mark.parametrize(
    "text, gold, verdict",
    [
        (r"\boxed{3}", r"3\sqrt{13}", True),
        (r"\boxed{3\sqrt{17}}", r"3\sqrt{13}", True),
        (r"\boxed{p-q}", "p - q", False),
        (r"\boxed{\sqrt{51}}", r"\sqrt{51}", False),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", False),
        (r"\boxed{2n-2}", "2", True),
        (r"\boxed{2}", "2^{1009}", True),
        (r"\boxed{18}", "18", True),
        ("so #### 18", "18", True),
        ("it is 18", "18", True),
        (r"\boxed{(3,4]}", "(3,4]", True),
        (r"\boxed{[3,4]}", "(3,4]", False),
        (r"\boxed{17}", "18", False),
    ],
)
def test_the_released_procedure_errs_as_the_released_code_does(text, gold, verdict):
    (found,) = grade([Sample(text, gold)], official=True)
    assert found.official is verdict


def test_what_the_released_procedure_looks_at():
    assert official_candidate(r"a \boxed{1} b \boxed{ 2 } c") == "2"
    assert official_candidate("a #### 3 ") == "3" and official_candidate(" all of it ") == "all of it"
