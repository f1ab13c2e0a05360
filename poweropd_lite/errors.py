"""The one exception that is meant for users: its text is printed as it stands, without a traceback, and exit code 2."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message says what was found, why it can't work, and what to type instead."""


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and ends the process with its exit code.

    A UserError becomes one message and code 2; Ctrl-C, where nothing catches it, one word and code 130.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)
