"""All screens, and the one that a path leads to."""

from darkpearl.monitor.screens import Screen, operations, orders, overview, sagas, stock

SCREENS = [
    *overview.SCREENS,
    *orders.SCREENS,
    *sagas.SCREENS,
    *stock.SCREENS,
    *operations.SCREENS,
]
MENU = [screen for screen in SCREENS if "/" not in screen.path]
"""What the menu leads to."""


def find_screen(path: str) -> tuple[Screen, dict[str, str]] | None:
    """The screen at a path under /monitor, and the ids that the path has."""
    for screen in SCREENS:
        if found := screen.pattern.fullmatch(path):
            return screen, found.groupdict()
    return None
