"""Every screen and state, looked at in a real browser: light, dark, and on a phone."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from shop import Shop
from windows import Window

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}
RULES: dict[str, tuple[str, ...]] = {
    "light": (),
    "dark": ("color-contrast",),
    "phone": ("color-contrast", "scrollable-region-focusable", "meta-viewport"),
}
"""What axe looks at: everything once, and again what a look can change."""
SCREENS = {
    "overview": ("", "stuck sagas"),
    "orders": ("/orders", "mallory"),
    "order": ("/orders/{fulfilled}", "Captured"),
    "order-declined": ("/orders/{declined}", "declined"),
    "sagas": ("/sagas", "refund"),
    "saga": ("/sagas/{stuck}", "poison"),
    "stuck": ("/stuck", "process payment"),
    "stock": ("/stock", "RING-18"),
    "stock-all": ("/stock?show=all", "PEARL-S"),
    "shelf": ("/stock/{pearls}/{lisbon}", "receive"),
    "listeners": ("/listeners", "evt_lost"),
    "activity": ("/activity", "the gateway is being moved"),
    "audit": ("/audit", "nothing found"),
}
Opened = Callable[..., Awaitable[Window]]


@pytest.mark.parametrize("look", LOOKS)
async def test_screens_show_what_there_is(window: Opened, busy: Any, shop: Shop, look: str) -> None:
    """Each screen shows the shop, can be used by everybody (axe), and complains of nothing."""
    opened = await window(**LOOKS[look], reduced_motion="reduce")
    await opened.sign_in()
    wrong = []
    for name, (path, said) in SCREENS.items():
        ids = {**vars(busy), "pearls": shop.products[0], "lisbon": shop.lisbon}
        await opened.open(path.format(**ids))
        await opened.photograph(f"{name}-{look}")
        if said not in await opened.text():
            wrong.append(f"{name}: {await opened.text()}")
        rules = RULES[look]
        wrong += [f"{name}: {each}" for each in await opened.violations(*rules)]
    assert wrong == []
