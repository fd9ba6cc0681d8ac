"""Commands as people run them, but in this process: what they print, and their exit code."""

import contextlib
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from darkpearl.cli.main import run


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    said: str
    errors: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What --json has printed."""
        return [json.loads(line) for line in self.said.splitlines()]

    @property
    def row(self) -> dict[str, Any]:
        """The only one of them."""
        (row,) = self.rows
        return row


Run = Callable[..., Awaitable[Done]]
Refused = Callable[..., Awaitable[str]]
Ask = Callable[[str], Awaitable[dict[str, Any]]]


def done(arguments: tuple[object, ...]) -> Done:
    """Run a command to its end."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = run([str(each) for each in arguments])
    return Done(code, said.getvalue(), errors.getvalue())
