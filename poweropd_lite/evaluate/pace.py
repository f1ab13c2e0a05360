"""How long answers that are sampled through a fixed number of lines will still take."""

import math

from poweropd_lite.engines.refill import Ended


def seconds_left(
    told: Ended, elapsed: float, ended: int, most: int, behind: int, lines: int, longest: int
) -> float | None:
    """Returns the seconds that a stream of answers will still take, None while nothing is known.

    `elapsed` seconds so far, in which so many `ended`, the longest of `most` tokens; `behind` it others will come. Answers
    that have not begun begin as fast as answers have ended so far, which is never slower than if all were as long as may be.
    The last one to begin is taken for one of `most` tokens, or of `longest` where an open one has more. So neither the start, where short ones alone have ended, nor the
    end, where long ones alone are left, deceives.
    """
    waiting = told.waiting + behind
    each = elapsed / ended if ended else math.inf
    if not told.steps:  # batch by batch
        return waiting * each if ended else None
    step = elapsed / told.steps
    last = (most if most > told.youngest else longest) - (0 if waiting else told.youngest)
    return waiting * min(each, step * longest / lines) + step * last
