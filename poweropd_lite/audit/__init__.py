"""May the teacher be 4-bit at this alpha? `python -m poweropd_lite.audit`, on rollouts of the student."""
