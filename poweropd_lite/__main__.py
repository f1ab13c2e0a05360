"""`python -m poweropd_lite COMMAND ...` is `poweropd COMMAND ...`."""

from poweropd_lite.cli import console

console()
