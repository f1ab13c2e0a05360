"""A conversation: `python -m poweropd_lite.chat runs/power10-seed0`. (All of it is in evaluate/chat.py.)"""

from poweropd_lite.cli import run_command
from poweropd_lite.evaluate.chat import main

__all__ = ["main"]

if __name__ == "__main__":
    run_command(main)
