"""The screens: each a path under /monitor, the function that gives its data, and a template."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import LiteralString

from darkpearl.monitor.viewer import Statement

_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


@dataclass(frozen=True)
class Screen:
    """Something to look at.

    Args:
        path: under /monitor, with ids in braces; the first word is the section of the menu.
        title: of the window.
        template: shows the document that the function gives.
        function: gives all that the screen shows, or null when there is nothing; its arguments
            are called p_ and as the ids of the path and the filters.
        filters: of the address, that it takes. Others narrow nothing.
    """

    path: str
    title: str
    template: str
    function: LiteralString
    filters: tuple[LiteralString, ...] = ()
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        pattern = re.sub(r"{(\w+)}", rf"(?P<\1>{_UUID})", self.path)
        object.__setattr__(self, "pattern", re.compile(pattern))

    @property
    def section(self) -> str:
        """The entry of the menu that it belongs to."""
        return self.path.partition("/")[0]


SCREENS = [
    Screen("", "Overview", "overview.html", "monitor_overview", ("step",)),
    Screen(
        "orders",
        "Orders",
        "orders.html",
        "monitor_orders",
        ("status", "warehouse", "trouble", "search", "before"),
    ),
    Screen("orders/{id}", "Order", "order.html", "monitor_order"),
    Screen("sagas", "Sagas", "sagas.html", "monitor_sagas", ("status", "saga_type", "before")),
    Screen("sagas/{id}", "Saga", "saga.html", "monitor_saga"),
    Screen(
        "stuck",
        "Stuck",
        "stuck.html",
        "monitor_stuck",
        ("saga_type", "step", "error_code", "cause", "after"),
    ),
    Screen(
        "stock",
        "Stock",
        "stock.html",
        "monitor_stock",
        ("search", "show", "warehouse", "after", "after_warehouse"),
    ),
    Screen("stock/{product}/{warehouse}", "Shelf", "shelf.html", "monitor_shelf", ("before",)),
    Screen("listeners", "Listeners and gateways", "listeners.html", "monitor_listeners"),
    Screen(
        "activity",
        "Activity",
        "activity.html",
        "monitor_activity",
        ("actor", "action", "before"),
    ),
    Screen("activity/{id}", "Batch", "batch.html", "monitor_batch"),
    Screen("audit", "Audit", "audit.html", "monitor_audits"),
    Screen("cells", "Cells", "cells.html", ""),
]
"""The last is of several cells: no function of any of them gives it."""
MENU = [screen for screen in SCREENS if "/" not in screen.path and screen.function]
"""What the menu leads to."""


@dataclass(frozen=True)
class Sight:
    """What somebody looks at: a screen, with the ids of its path and what its address asks for."""

    screen: Screen
    ids: tuple[tuple[str, str], ...]
    asked: tuple[tuple[str, str], ...]
    cell: int = 0
    """The number of the cell that is looked at; 0 where it is the only one."""

    @property
    def is_of_all(self) -> bool:
        """It is of all cells, and not of one."""
        return not self.screen.function

    @property
    def path(self) -> str:
        """Where it is, under /monitor."""
        return self.screen.path.format(**dict(self.ids))

    def call(self, number: int) -> Statement:
        """The call of its function, as a part of a statement that has many, numbered."""
        given = {name: each for name, each in self.asked if name in self.screen.filters}
        given |= dict(self.ids)
        named = ", ".join(f"p_{name} => %({name}_{number})s" for name in given)
        parameters = {f"{name}_{number}": each for name, each in given.items()}
        return f"{self.screen.function}({named})", parameters


def find_sight(path: str, asked: Mapping[str, str]) -> Sight | None:
    """What is to be seen at a path under /monitor; None where there is no screen."""
    for screen in SCREENS:
        if found := screen.pattern.fullmatch(path):
            ids = tuple(found.groupdict().items())
            return Sight(screen, ids, tuple(sorted(asked.items())))
    return None


OVERVIEW: Statement = (
    (
        "select monitor_state() as state,"
        " (select json_agg(c) from catalogue_state() as c) as catalogue"
    ),
    {},
)
"""What each cell says of itself, and home of the others."""
_IS_HERE = "not array[warehouse_id] <@ (select closed_warehouses())"
FOUND_ID = f"select true as found from sagas where id = %(id)s and {_IS_HERE}"  # noqa: S608
"""Finds a row where an order or a saga is, and not where a copy of it was left behind."""
FOUND_NUMBER = f"select true as found from orders where order_number = %(number)s and {_IS_HERE}"  # noqa: S608
"""The same for the number of an order."""


def look_at(sights: list[Sight]) -> Statement:
    """One statement for all of them: its row has the state line, and what each shows in order."""
    calls = [sight.call(number) for number, sight in enumerate(sights)]
    seen = ", ".join(call for call, _ in calls)
    parameters = {name: each for _, given in calls for name, each in given.items()}
    return f"select monitor_state() as state, json_build_array({seen}) as seen", parameters
