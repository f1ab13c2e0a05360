"""Which alpha, which reward? `python -m poweropd_lite.advise`, one set of rollouts replayed through all of them."""
