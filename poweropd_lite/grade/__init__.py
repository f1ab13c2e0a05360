"""Right or wrong: `is_correct(completion, gold)`, or `grade` for many samples at once.

Read in this order: answers.py (the answer in a text), normal.py (its one form), equal.py (equality by structure),
quantity.py and algebra.py (of numbers and of expressions), judges.py (the processes that decide what may take long),
grader.py (all of it together); official.py is the released code's way.
"""

from poweropd_lite.grade.grader import GRADER, Sample, Verdict, grade, is_correct, is_hostile, quick_verdict

__all__ = ["GRADER", "Sample", "Verdict", "grade", "is_correct", "is_hostile", "quick_verdict"]
