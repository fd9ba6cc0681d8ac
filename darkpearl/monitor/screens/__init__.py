"""The screens: each a path under /monitor, one statement, and the template that shows its row."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import LiteralString

from darkpearl.monitor.viewer import Statement

PAGE = 50
"""Rows of a list."""
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

Asked = Mapping[str, str]
"""What an address asks for: the filters of its query, and the ids of its path."""


@dataclass(frozen=True)
class Screen:
    """Something to look at.

    Args:
        path: under /monitor, with ids in braces; the first word is the section of the menu.
        title: of the window.
        template: shows the columns of the row that the statement finds.
        statement: finds one row for what is asked, with lists as JSON.
    """

    path: str
    title: str
    template: str
    statement: Callable[[Asked], Statement]
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        pattern = re.sub(r"{(\w+)}", rf"(?P<\1>{_UUID})", self.path)
        object.__setattr__(self, "pattern", re.compile(pattern))

    @property
    def section(self) -> str:
        """The entry of the menu that it belongs to."""
        return self.path.partition("/")[0]


class Conditions:
    """The conditions of a statement, made of the filters that are asked for, and no others."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._conditions: list[LiteralString] = []
        self.parameters: dict[str, object] = {"limit": PAGE + 1}

    def when(self, name: str, condition: LiteralString) -> "Conditions":
        """A condition for when there is a filter of this name, its parameter."""
        if name in self._asked:
            self.parameters[name] = self._asked[name]
            self._conditions.append(condition)
        return self

    def __str__(self) -> str:
        return " and ".join(self._conditions) or "true"
