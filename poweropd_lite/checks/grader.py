"""The user's own function that scores, found before anything loads."""

from poweropd_lite.base.errors import UserError
from poweropd_lite.grade.custom import Grader, find_grader
from poweropd_lite.grade.judges import GraderFault


def check_grader(name: str, flag: str) -> Grader:
    """Returns the grader `name`, typed with `flag`, as its file is now; raises UserError for one that can't be called."""
    try:
        return find_grader(name, anew=True)
    except GraderFault as fault:
        form = "module:function, such as my_grader:score for score(completion, row) of my_grader.py in this folder"
        raise UserError(f"{flag} {name}: {fault}; type {flag} with {form}") from None
