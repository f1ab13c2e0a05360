"""Does a run fit, and how long will it take? `python -m poweropd_lite.plan`, from model configs alone.

Read in this order: shape.py (a model without weights), trace.py (the real program on tensors without memory), memory.py
(what is alive in each phase), flops.py and cards.py (work and time), fit.py (the smallest change that fits), report.py.
"""
