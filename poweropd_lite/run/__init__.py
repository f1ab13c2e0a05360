"""A run's life: what is loaded, recorded, saved and handed over."""
