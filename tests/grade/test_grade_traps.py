r"""What the grader, or math-verify under it, once got wrong: each family with what must be right and what must be wrong.

As in test_grade.py a line is gold | right answers | wrong answers; either may be empty.
"""

import threading
import time

import pytest

from poweropd_lite.grade import Sample, grade, is_correct, is_hostile, quick_verdict

FAMILIES = {
    "large integers are compared to the last digit": r"""
        2^{1009} | 2\cdot 2^{1008} | 2^{1009}-1 ;; 2^{1009}+1
        \frac{100!}{2^{50}} | 100!/2^{50} | \frac{100!}{2^{50}}-1
        3^{50} | 9^{25} | 3^{50}-1
        \binom{100}{50} | \frac{100!}{50!50!} | \binom{100}{50}-1
        100! | | 100!+1
    """,
    "upright letters are no units": r"""
        6 - 5i | 6-5\mathrm{i} ;; 6-5\text{i} | 6
        5 | | 2+3\mathrm{i}
        2 | | 2\mathrm{e} ;; 2\mathbf{x} ;; 2\mathrm{\pi} ;; 2\operatorname{cosh}
        4-3\mathrm{i} | 4-3i | 4-3
        e^{t} / 3 | \frac{\mathrm{e}^{t}}{3} | t/3
    """,
    "derivatives": r"""
        \frac{d x}{d t}=k x-a | \frac{\mathrm{d}x}{\mathrm{d}t}=kx-a ;; x'=kx-a ;; \dot{x}=kx-a ;; \dot x = kx - a ;; dx/dt = kx-a ;; kx-a=\frac{dx}{dt} | \frac{dx}{dt}=a-kx ;; \frac{dx}{dt}=2(kx-a) ;; \frac{dq}{dt}=kx-a ;; \frac{dx}{dq}=kx-a ;; kx=a
        m \frac{d v}{d t}+b v=f | m\dot v+bv=f ;; m v'+bv=f | bv=f ;; \frac{dv}{dt}+bv=f ;; 2m\frac{dv}{dt}+bv=f ;; f
        y^{\prime}+r y-r x(t)=0 | y' + ry = rx(t) ;; y'+r y-r x(t)=0 | y+ry-rx(t)=0
        y' | y^{\prime} | y ;; y''
        0 | | \frac{dx}{dt}
    """,
    "steps and absolute values": r"""
        \lfloor\sqrt{n-1}\rfloor | \lfloor \sqrt{n-1} \rfloor | -\lfloor\sqrt{n-1}\rfloor ;; 2\lfloor\sqrt{n-1}\rfloor ;; \lfloor\sqrt{q-1}\rfloor
        \lfloor\log_2 n\rfloor+1 | 1+\lfloor\log_2 n\rfloor | \lceil\log_2 n\rceil ;; \lfloor\log_3 n\rfloor+1
        \lceil n/2\rceil+1 | \lfloor\frac{n+1}{2}\rfloor+1 | \lceil n/3\rceil+1
        m n-\lfloor m / 2\rfloor | | mn-\lfloor m/3\rfloor
        x+1 | | |x+1|
        5-x | | |x-5|
        \sqrt{4 \pi G \rho_{0} r_{0}^{2}} | r_0\sqrt{4\pi G\rho_0} ;; 2r_0\sqrt{\pi G\rho_0} | 4r_0\sqrt{\pi G\rho_0}
    """,
    "what stands left of an equals sign": r"""
        5 | f(2)=5 ;; AB=5 ;; \angle A=5 ;; \text{Area}=5 ;; x+y=5 ;; 2+3=5 ;; x=2+3=5 ;; \frac{m}{n}=5 ;; a_1=5 ;; P(A)=5 ;; m\angle ABC=5 ;; |z|=5 | 2x=5 ;; -x=5 ;; x^2=5 ;; x+1=5 ;; 6=5 ;; 0=5
        12 | | 5=12 ;; 3x=12
        0 | | x^2-4=0
        5x - 7y + 11z + 4 = 0 | | 0 ;; 5x-7y+11z+4
        2x+3y=6 | 4x+6y=12 | 6
        x^2+y^2=1 | | 1
    """,
    "letters and words behind a number": r"""
        5 | 5N ;; 5 cm ;; 5cm ;; 5 m | 5ab ;; 5 to 7 ;; 5 minus 2 ;; 5 factorial ;; 5 squared ;; 5 half ;; 5 cot x ;; 5 i ;; 5 e ;; 5 x
        2ab | 2ba | 2 ;; 2xy
        \frac{1}{2}ab | \frac{ab}{2} | \frac{1}{2}
        5 | | 5\text{ million} ;; 5\text{ dozen} ;; \$5\text{ billion} ;; 5\text{ or more} ;; 5\text{ and a half} ;; 5\text{ squared} ;; 5\text{+} ;; 5\text{ is wrong}
        2000000 | 2 \text{ million} ;; 2 million ;; 2{,}000{,}000 ;; \$2 million | 2 ;; 2 thousand
        p - q | | p - q\text{ million}
    """,
    "units of physics": r"""
        7e37 | 7 \times 10^{37}\;\mathrm{W\,m^{-2}} ;; 7 \times 10^{37}\ \mathrm{m^{-3}} ;; 7 \times 10^{37}\,\text{erg}\cdot\text{s}^{-1} ;; 7 \times 10^{37}\frac{\text{erg}}{\text{s}} ;; 7\times10^{37} J | 7 \times 10^{36}\ \mathrm{m^{-3}}
        5 | 5 \frac{\text{m}}{\text{s}^2} ;; 5\,\mu\text{m} ;; 5\,\Omega ;; 5 Å ;; 5 \text{ m/s}^2 | 5\mu ;; 5 \frac{\text{m}}{2}
        1.9 | 1.9\,M_\odot | 19\,M_\odot
        9.6 | 9.6\text{ W}/(\text{m}\cdot\text{K}) | 6.9\text{ W}/(\text{m}\cdot\text{K})
    """,
    "grouped numbers are no lists": r"""
        276,000 | 276000 ;; 276{,}000 | 276,0 ;; 0, 276 ;; (276,0) ;; 276,000\pi
        114,200 | 114200 | \{200,114\} ;; 200, 114
        5,600 | 5600 | (5,600) ;; x=5,y=600
        2500,7500 | 2{,}500 \text{ and } 7{,}500 ;; 2,500 and 7,500 | 2500 ;; 25007500
        6764$,$10945 | 6,764 \text{ and } 10,945 | 6,764
        16,3,1,1 | 1,1,3,16 | 16,3,1 ;; 16,16,3,1
        1,2 | 2,1 | 1,2,2,1
    """,
    "a space between digits makes two numbers, but between groups of three": r"""
        12 | | 1 \quad 2 ;; 1\ \ 2 ;; 1 2
        23 | | 2\,3
        123 | | 1\;2\;3
        3 | | 1 \quad 2
        6 | 2\;\cdot\;3 | 1 2 3 ;; 2 3
        0 | | 1 000
        11/2, 3 | 5 1/2, 3 | 1 1/2, 3
        12x | 12\, x | 1\,2x
        12_8 | 12 _8 | 1 2_8
        1000 | 1 000 ;; 1\,000 ;; 1\ 000 ;; 1 000 dollars | 1 0 0 0 ;; 10 00
        12345 | 12\,345 ;; 12 345 | 123 45 ;; 1 2345
        6.67430 | 6.674\,30 ;; 6.674 30 | 6.67 430
        1000\pi | 1 000\pi | 1 0 00\pi
        36 | 2^2 3^2 | 2 3
        \frac{1}{2}\pi | \frac 1 2\pi | \frac 1 3\pi
    """,
    "a decimal as the gold answer": r"""
        0.333333 | 1/3 ;; \frac13 | 0.33 ;; 1/4
        0.333333x | \frac{x}{3} | \frac{x}{4}
        0.33 | | 1/3
    """,
    "wrappers and layout": r"""
        5 | \approx 5 ;; \boldsymbol{5} ;; \textcolor{red}{5} ;; \color{red}{5} ;; \underline{5} ;; \large 5 ;; \Large{5} ;; \begin{aligned} x &= 5 \end{aligned} | \boldsymbol{6}
        \frac{14}{3} | \mathbf{\frac{14}{3}} ;; 4 2/3 ;; 4\frac23 ;; 4 \frac{2}{3} | \mathbf{\frac{3}{14}}
        1000 | \text{\$}1000 ;; \$1,\!000 | 100
        \frac{1}{2} | \frac{1}{2} \text{ or } 0.5 | \frac{1}{2} \text{ or } 2
        \frac{1}{3} | ⅓ ;; 0.\overline{3} ;; 0.\bar3 ;; \nicefrac13 | 0.\overline{4} ;; 0.3
        4.5e33 | 4.5 × 10³³ ;; 4.5 x 10^{33} ;; \approx 4.5 \times 10^{33} | 4.5 × 10³
        288 \pi | 288 pi ;; 288*pi | 288 p
        11\sqrt2 | 11√(2) ;; 11 sqrt(2) | 11√(3)
        (15,-29) | \langle 15,-29\rangle | \langle -29,15\rangle
        \begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 \\[4pt] 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
        (2,\infty) | \{x \mid x>2\} ;; \{x : x > 2\} | \{x \mid x<2\}
        (0,9) \cup (9,36) | (0,9)U(9,36) | (0,36)
        1,-2 | x=1 \lor x=-2 ;; \{1, -2\} | x=1 \lor x=2
        f(x)=2 x | f(x)=2x \text{ for all } x ;; f(x)=2x, \forall x\in\mathbb R | f(x)=3x \text{ for all } x
        52_8 | 52_{(8)} ;; (52)_8 | 52_{(9)}
        -3 | | -3_1
    """,
    "names": r"""
        \lambda_{\text {red}} / \sqrt{2} | \frac{\lambda_{\text{red}}}{\sqrt2} | \lambda_{\text{red}}
        MR=SRMC | MR = SRMC ;; \text{MR}=\text{SRMC} ;; SRMC=MR | MR=MCSR ;; SRMC=RM
        m_{p} c^{2}\left(\gamma^{2}-1\right) \sin ^{2} \theta | (\gamma^2-1)m_pc^2\sin^2\theta | (\gamma^2-2)m_pc^2\sin^2\theta
        \gamma m c^2 | mc^2\gamma | 0.5772156649 m c^2 ;; \zeta m c^2 ;; g m c^2
        \frac{R}{r} | \frac{2R}{2r} | \frac{w}{r} ;; 1 ;; r/R
        \frac{R_0}{r_0} | R_{0}/r_{0} | \frac{R_1}{r_0} ;; 1
        1 | | \gcd(a,b)
        \text{(C)} | \text{(C) } 42 ;; \textbf{(C)}\ 42 ;; (C) 42 ;; C. 42 ;; C) 42 ;; \text{Option C} | \text{(D) } 42 ;; (A) C ;; Cat
        \text{ellipse} | \text{an ellipse} ;; ellipse | \text{a circle}
    """,
}


def cases(family):
    for line in filter(None, map(str.strip, FAMILIES[family].splitlines())):
        gold, right, wrong = (line + " ").replace("| |", "|  |").split(" | ", 2) if " |  | " not in line else (*line.split(" |  | ")[:1], "", line.split(" |  | ")[1])  # fmt: skip
        for verdict, answers in ((True, right), (False, wrong)):
            for answer in filter(str.strip, answers.split(" ;; ")):
                yield gold.strip(), answer.strip(" "), verdict


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    every = list(cases(family))
    found = grade([Sample(f"\\boxed{{{answer}}}", gold) for gold, answer, _ in every])
    assert not [(case, v) for case, v in zip(every, found, strict=True) if v.correct != case[2]]
    assert all(v.correct for v in grade([Sample(f"\\boxed{{{gold}}}", gold) for gold, _, _ in every]))


@pytest.mark.parametrize(
    "answer",
    ["1" + "\\!" * 40, "~" * 990 + "1", "\\;" * 450, ("1" + " " * 100 + "^") * 4, "(" * 900, " \\text{ and" * 90, "a_" * 400]
    + ["x" + "'" * 900, "5" + "\\cdot\\text{m}" * 60 + "x", "5 " + "m " * 400, "1,111" * 180, "=5" * 300, "5" + "\\text{ m}" * 100 + "5"],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_reading_is_quick_whatever_stands_there(answer):
    """These run without a limit: each once took seconds, or, doubling with every sign, days."""
    started = time.monotonic()
    quick_verdict("\\frac{x}{2}", answer)
    is_hostile(answer)
    assert time.monotonic() - started < 2


def test_after_an_interruption_verdicts_are_not_those_of_before():
    right = [Sample(f"\\boxed{{x+{i}}}", f"{i}+x") for i in range(40)]

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade(right, tick=interrupt)
    assert not any(v.correct for v in grade([Sample(f"\\boxed{{x+{i}}}", f"{i}-x") for i in range(40)]))
    assert is_correct("\\boxed{x+1}", "1+x")


def test_many_threads_at_once_get_their_own_verdicts():
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: is_correct(f"\\boxed{{x+{i}}}", f"{i % 2 * i}+x")}))
        for i in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: i % 2 == 1 for i in range(1, 9)}


def test_a_space_in_latex_at_the_end_of_a_box():
    assert is_correct("\\boxed{5\\ }", "5") and is_correct("\\boxed{\\ 5\\ }", "5")


def test_a_tolerance_that_is_none_is_refused():
    with pytest.raises(ValueError, match="tolerance"):
        is_correct("\\boxed{5}", "6", tolerance=float("inf"))
