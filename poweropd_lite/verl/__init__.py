"""What verl 0.9.1 loads of this package, for several cards and machines (docs/verl.md): rewards, a stop mask, a grader.

Importing it imports verl, which imports it in each of its processes where VERL_USE_EXTERNAL_MODULES=poweropd_lite.verl.
"""

from poweropd_lite.verl import rewards, stops

__all__ = ["rewards", "stops"]
