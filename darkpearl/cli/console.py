"""Output for people: results on standard output, each failure as one line on standard error."""

import os
import sys
from collections.abc import AsyncIterator

from rich.console import Console

PIPE_COLUMNS = 120


class _Out(Console):
    """Standard output; work goes on when nobody reads it any more, as in `darkpearl up | head`."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from here on."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


out = _Out(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


async def tell(lines: AsyncIterator[str]) -> None:
    """Print what something says while it works, each line as it comes."""
    async for line in lines:
        out.print(line, markup=False)


def fail(error: object, code: int) -> int:
    """Tell of an error in one line; the exit code."""
    errors.print(f"darkpearl: {' '.join(str(error).split())}", markup=False)
    return code
