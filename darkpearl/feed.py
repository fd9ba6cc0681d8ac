"""How far the feed can be read: what a process that follows it has to remember between its looks.

Ids are drawn in one order and committed in another. look_for_horizon() of routines/73_feed.sql says
up to which id all is decided, by a mark that was left at the look before.
"""

from typing import Any


class Horizon:
    """The horizon as one process knows it. Looks come one after another, never two at once."""

    def __init__(self) -> None:
        self.id = 0
        """All up to this id is decided."""
        self._mark: dict[str, Any] = {"last": None, "writers": None}

    @property
    def look(self) -> tuple[str, dict[str, Any]]:
        """The statement of the next look: in read committed, before the one that reads."""
        return "select * from look_for_horizon(%(last)s, %(writers)s)", self._mark

    def see(self, row: dict[str, Any]) -> bool:
        """Take in what the look has found; says whether there is more to read than before."""
        self._mark = {"last": row["last"], "writers": row["writers"]}
        known, self.id = self.id, max(self.id, row["horizon"] or 0)
        return self.id > known
