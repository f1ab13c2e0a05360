"""Audit and advise: rollouts scored once, and what is said of them."""
