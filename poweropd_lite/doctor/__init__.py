"""Is this pair sound, and this machine? `python -m poweropd_lite.doctor`, from tokenizers, configs and data alone."""
