"""The one exception that is meant for users: its text is printed as it stands, without a traceback (cli.run_command)."""


class UserError(Exception):
    """Something the user can mend. The message says what was found, why it can't work, and what to type instead."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter and IPython show in place of a traceback."""
        return [f"error: {self}"]
