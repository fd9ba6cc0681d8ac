"""Who looks at the page, as the API knows them; the page knows nothing of tokens."""

from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Parameters = dict[str, Any]
Statement = tuple[str, Parameters]


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

    async def find(self, kind: type[T], *statements: Statement) -> T | None:
        """The first row of the last statement, with exact numbers; None when there is none.

        Raises:
            DarkPearlError: whatever the database says.
        """
