"""One question: `ask("runs/power10-seed0", "Compute 12 + 30 - 7.")`, or `python -m poweropd_lite.ask RUN "..."`."""

from poweropd_lite.cli import run_command
from poweropd_lite.evaluate.ask import ask, before_and_after, main

__all__ = ["ask", "before_and_after", "main"]

if __name__ == "__main__":
    run_command(main)
