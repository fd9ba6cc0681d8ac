"""Who looks at the page, as the API knows them; the page knows nothing of tokens."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Parameters = dict[str, Any]
Statement = tuple[str, Parameters]


class Named(Protocol):
    """A cell, as far as the page needs to know."""

    @property
    def name(self) -> str:
        """What it is called."""


class Viewer(Protocol):
    """The maker of a request, who may read everything, and perhaps act."""

    key: str
    """What the viewer is counted under."""

    @property
    def role(self) -> str:
        """The role of the database that statements run as."""

    @property
    def may_act(self) -> bool:
        """The role has functions that change something; the database decides which."""

    @property
    def has_expired(self) -> bool:
        """The token has expired since it was verified."""

    @property
    def cells(self) -> Mapping[int, "Named"]:
        """The cells there are, by number; none, where this is the only one."""

    @property
    def cell(self) -> int:
        """The number of the one that is looked at; 0 where it is the only one."""

    def in_cell(self, number: int) -> "Viewer":
        """The same viewer, who looks at another cell and acts there."""

    async def find(self, kind: type[T], *statements: Statement) -> T | None:
        """The first row of the last statement, with exact numbers; None when there is none.

        Raises:
            DarkPearlError: whatever the database says.
        """
