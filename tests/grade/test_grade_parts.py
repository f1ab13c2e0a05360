r"""Where an answer parts, and what stands around it: each family with what must be right and what must be wrong.

As in test_grade.py a line is gold | right answers | wrong answers; either may be empty.
"""

import pytest

from poweropd_lite.grade import Sample, grade
from poweropd_lite.grade.answers import final_answer

FAMILIES = {
    "an equals sign in a bound is none of the whole": r"""
        \sum_{k=1}^{n} k | \frac{n(n+1)}{2} | \sum_{k=1}^{n-1} k ;; \sum_{k=2}^{n} k ;; k ;; n
        0 | 0.0 | \sum_{n=0}^{\infty} x^n
        1 | \sum_{k=1}^{1} k | \sum_{k=1}^{9} k ;; \prod_{i=1}^{3} i
        \sum_{k=1}^{10} k | 55 ;; S=55 | 10 ;; 45
        \prod_{i=1}^{4} i | 24 | 4
        S=\sum_{k=1}^{3} k^2 | 14 ;; S=14 | 3 ;; 9
    """,
    "nor is one in brackets": r"""
        P(X=2)=\frac12 | P(X=2)=0.5 ;; P(X = 2) = \frac{1}{2} | P(X=3)=\frac12 ;; P(X=2)=\frac13
        P(A)=\frac12 | \frac12 | \frac13
        f(x=1)=3 | f(x=1)=3 | f(x=2)=3
    """,
    "systems and lines": r"""
        \begin{cases} x=1 \\ y=2 \end{cases} | \begin{cases} y=2 \\ x=1 \end{cases} ;; x=1, y=2 | \begin{cases} x=5 \\ y=2 \end{cases} ;; \begin{cases} x=1 \\ y=3 \end{cases} ;; y=2 ;; 2
        x=1 \quad y=2 | x=1, y=2 ;; x=1\qquad y=2 | x=5 \quad y=2 ;; x=1 \quad y=3 ;; 2
        x=1 \\ y=2 | x=1, y=2 | x=3 \\ y=2
        \begin{aligned} x&=1\\ y&=2\end{aligned} | x=1, y=2 | \begin{aligned} x&=4\\ y&=2\end{aligned}
    """,
    "pieces of functions": r"""
        f(x)=\begin{cases}1&x=0\\0&x\ne0\end{cases} | f(x)=\begin{cases}0&x\ne0\\1&x=0\end{cases} ;; \begin{cases}1&\text{if }x=0\\0&\text{if }x\ne0\end{cases} | f(x)=\begin{cases}2&x=0\\0&x\ne0\end{cases} ;; f(x)=\begin{cases}1&x=1\\0&x\ne0\end{cases} ;; 0
        a=3\text{ if }n=1 | a=3 \text{ when } n=1 | a=4\text{ if }n=1 ;; a=3\text{ if }n=2
    """,
    "tuples of names": r"""
        (3,4) | (x,y)=(3,4) ;; (x, y) = (3, 4) | (x,y)=(4,3)
        (p,q)=(3,2) | (3,2) ;; (p,q)=(3,2) | (2,3)
    """,
    "all reals": r"""
        (-\infty,\infty) | \mathbb{R} ;; \mathbb R ;; (-\infty, +\infty) ;; \text{all real numbers} ;; x\in\mathbb{R} | (0,\infty) ;; \mathbb{Z}
        \mathbb{R} | (-\infty,\infty) | [0,\infty)
    """,
    "sets without backslashes": r"""
        \{1,2,3\} | {1,2,3} ;; {3,1,2} | {1,2} ;; {1,2,4}
        \pm 2021 | {-2021, 2021} | {2021, 2022}
    """,
    "ordinals": r"""
        12 | 12^{\text{th}} ;; 12^{th} ;; 12th ;; 12\text{th} | 13th ;; 12^{2}
        2 | 2nd ;; 2^{\text{nd}} | 2n
    """,
    "bases in words": r"""
        1010_2 | 1010_{\text{two}} ;; 1010_{two} ;; 1010_{2} | 1010_{\text{three}} ;; 1011_{\text{two}}
        A3_{16} | \text{A3}_{16} | \text{A4}_{16}
    """,
    "what stands behind a number": r"""
        9 (apples) | 9 | 8
        9 | 9 (apples) ;; 9\text{ (apples)} | 8 (apples) ;; 9 (x) ;; 9(x+1)
        180 | 180 \text{ (days)} | 18 \text{ (days)}
        5 | 5€ ;; 5\text{ €} ;; €5 ;; £5 ;; 5 ¥ | 6€ ;; 50€
    """,
    "what stands before it": r"""
        11 | x\approx 11 ;; \approx 11 | x\approx 12
        \frac13 | \frac13\approx 0.33 | \frac14\approx 0.33
        3 | \text{The answer is } 3 ;; \text{Answer: }3 ;; \text{Final answer: } 3 | \text{The answer is } 4
    """,
    "choices with their text": r"""
        A | A) 5 ;; (A) 5 ;; \text{(A)} ;; \textbf{(A)}\ 5 ;; A. 5 | B) 5 ;; (B) ;; C
        \textbf{(A)}\ 5 | A ;; (A) ;; \text{A} | B ;; (B) 5 ;; \textbf{(B)}\ 5
        \text{(A)} | A) 5 ;; A | B) 5
    """,
    "several choices are a list": r"""
        (A),(C) | (C),(A) ;; (A), (C) | (A) ;; (A),(D)
        A | (A) | (A),(C)
    """,
    "names with a value": r"""
        E = m g h | E = mgh | E = mg ;; mgx
        5 | \text{Answer} = 5 ;; Result = 5 ;; value = 5 | \text{Answer} = 6
        \text{All real numbers} | \text{all real numbers} ;; (-\infty,\infty) ;; -\infty < x < \infty | \text{no real numbers}
    """,
    "what is no ordinal and no remark": r"""
        2st | 2ts | 2 ;; 2s
        2nd\cos\theta | 2nd \cos\theta | 2\cos\theta
        2 (xyz) | 2xyz | 2 ;; 2(xy)
        3 (mod n) | 3 (mod n) | 3 ;; 4 (mod n)
    """,
    "aligned systems and long lines": r"""
        \begin{cases} x = 1 \\ y = 2 \end{cases} | \begin{cases} x &= 1 \\ y &= 2 \end{cases} ;; \begin{cases} x &= \frac{2}{2} \\ y &= 2 \end{cases} | \begin{cases} x &= 1 \\ y &= 3 \end{cases}
        a+b+c | \begin{aligned} a + b \\ + c \end{aligned} | \begin{aligned} a + b \\ + 2c \end{aligned}
        f(x)=\begin{cases}1 & \text{if } x>0\\0 & \text{if } x\le 0\end{cases} | \begin{cases}0 & x\le 0\\1 & x>0\end{cases} | \begin{cases}1 & \text{if } x>0\\2 & \text{if } x\le 0\end{cases}
    """,
    "matrices keep their order": r"""
        \left(\begin{array}{c}1\\2\end{array}\right) | \begin{pmatrix}1\\2\end{pmatrix} | \left(\begin{array}{c}2\\1\end{array}\right)
        \begin{array}{cc}1&2\\3&4\end{array} | \begin{array}{cc}1&2\\3&4\end{array} | \begin{array}{cc}3&4\\1&2\end{array}
    """,
    "what is said must be an answer": r"""
        5 | \text{The answer is } 5 ;; \text{The value of x is } 5 | \text{The answer is not } 5 ;; \text{Value is at least } 5 ;; 5 \text{ (million)}
        (-\infty,\infty) | x \in (-\infty,\infty) | x \in (0,\infty)
        12 | 12^{th} | 2^{st} ;; 13^{nd}
    """,
    "lists of words": r"""
        \text{C, D} | C, D ;; D, C ;; \text{C}, \text{D} | C ;; C, E ;; C, D, E
        \text{even, odd} | \text{odd, even} | \text{even}
    """,
    "any whole number": r"""
        \frac{\pi}{4}+k\pi, k\in\mathbb{Z} | \frac{\pi}{4}+k\pi ;; \frac{\pi}{4}+k\pi\ (k\in\mathbb{Z}) | \frac{\pi}{3}+k\pi ;; \frac{\pi}{4}
    """,
    "or without spaces": r"""
        (11,7)or(7,11) | (7,11), (11,7) ;; (11,7)\text{ or }(7,11) | (11,7) ;; (7,11), (11,8)
    """,
}


def cases(family):
    for line in filter(None, map(str.strip, FAMILIES[family].splitlines())):
        gold, right, wrong = line.split(" | ")
        for text, verdict in ((right, True), (wrong, False)):
            yield from ((gold, answer.strip(), verdict) for answer in text.split(" ;; ") if answer.strip())


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    every = list(cases(family))
    assert {verdict for *_, verdict in every} == {True, False}
    verdicts = grade([Sample(f"So \\boxed{{{answer}}}.", gold) for gold, answer, _ in every])
    wrong = [case for case, verdict in zip(every, verdicts, strict=True) if verdict.correct != case[2]]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 72, in total, so the farmer earns that much.", "72"),
        ("The answer is **72** clips.", "72"),
        ("The answer is approximately 72.", "72"),
        ("Answer: She sold 72 clips.", "72"),
        ("The answer is 72 (seventy-two).", "72"),
        ("The answer is 3 * 24 = 72", "72"),
        ("The answer is 36/2.", "36/2"),
        ("The answer is $\\frac{1}{2}$.", "$\\frac{1}{2}$"),
        ("The answer is 5 out of 20 students.", "5"),
        ("The answer is in step 2 below.\n2. She has 70 + 2 = 72", "72"),
        ("Half of it is 36.\nThe answer is $72. It was 80 before.", "72"),
    ],
)
def test_what_a_gsm8k_sentence_says(text, answer):
    assert final_answer(text, "gsm8k") == answer
