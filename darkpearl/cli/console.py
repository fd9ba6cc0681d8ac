"""Output for people: results on standard output, each failure as one line on standard error."""

import os
import sys

from rich.console import Console

PIPE_COLUMNS = 120


class _Out(Console):
    """Standard output; work goes on when nobody reads it any more, as in `darkpearl up | head`."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from here on."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


out = _Out(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(error: object, code: int) -> int:
    """Tell of an error in one line; the exit code."""
    errors.print(f"darkpearl: {' '.join(str(error).split())}", markup=False)
    return code
