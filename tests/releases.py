"""Releases: folders in the place of sql/, made out of the files of this checkout."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from shop import Shop

from darkpearl import schema

PLANS = "routines/61_order_fulfilment.sql"
CHECK_FILE = "routines/60_check_goods.sql"
CHECK = """    step(
        'check_goods',
        p_function => 'check_goods', p_undo => 'forget_check', p_undo_function => 'forget_check'
    )"""
"""A step between two others, with functions of its own in a file of its own."""

DEFINED = re.compile(
    r"^(select define_plan\(\n    '(\w+)',\n)(.*?)(\n\);)", re.DOTALL | re.MULTILINE
)
STEP = re.compile(r"^    step\(\n.*?^    \)", re.DOTALL | re.MULTILINE)
NAMES = re.compile(r"^    step\(\n        '(\w+)'(?:.*?p_undo => '(\w+)')?", re.DOTALL)

Change = Callable[[list[str]], list[str]]
"""Makes another plan of a plan, both as the texts of its steps."""
Plan = list[tuple[str, str | None]]
"""The names of the steps in order, each with that of its undo."""


def as_it_is(steps: list[str]) -> list[str]:
    """The plan of this checkout."""
    return steps


def insert(steps: list[str]) -> list[str]:
    """A step more, behind the first."""
    return [steps[0], CHECK, *steps[1:]]


def rename(steps: list[str]) -> list[str]:
    """Other names for all steps and their undos."""
    return [
        re.sub(
            r"(?<=p_undo => ')", "new_", step.replace("step(\n        '", "step(\n        'new_")
        )
        for step in steps
    ]


def move(steps: list[str]) -> list[str]:
    """The first two steps change places: the money is asked for before the stock is."""
    first = steps[0].replace(",\n        p_order_status_done => 'reserved'", "")
    assert first != steps[0]
    return [steps[1], first, *steps[2:]]


def check_function(name: str) -> str:
    """A step function that is content with everything."""
    return (
        f"set local role darkpearl_owner;\nset local search_path = darkpearl, pg_temp;\n"
        f"create or replace function {name}(p_warehouse_ids uuid[], p_saga_ids uuid[])"
        " returns outcome_group[] language plpgsql as $$\n"
        "begin return outcome_for_all('done', p_saga_ids); end $$;\n"
        f"comment on function {name}(uuid[], uuid[]) is 'Step.';\n"
    )


def make_release(
    folder: Path, change: Change = as_it_is, *, with_check: bool | None = None
) -> Path:
    """A folder in the place of sql/ with other plans of orders.

    with_check: whether the files have the functions of `CHECK`; as the plan has, by default.
    """
    shutil.copytree(Path(schema.__file__).parents[1] / "sql", folder)
    file = folder / PLANS
    text, plans = DEFINED.subn(
        lambda plan: plan[1] + ",\n".join(change(STEP.findall(plan[3]))) + plan[4],
        file.read_text(),
    )
    assert plans == 2
    file.write_text(text)
    if with_check is None:
        with_check = CHECK in text
    if with_check:
        (folder / CHECK_FILE).write_text(
            check_function("check_goods") + check_function("forget_check")
        )
    return folder


class Releases:
    """Makes releases, and migrates the database of the test to them."""

    def __init__(self, home: Path, url: str, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.url = url
        self.shop = shop
        self.monkeypatch = monkeypatch

    def make(self, change: Change = as_it_is, *, with_check: bool | None = None) -> Path:
        """A release with other plans of orders: see `make_release`."""
        folder = self.home / f"release_{len(list(self.home.iterdir()))}"
        return make_release(folder, change, with_check=with_check)

    def use(self, folder: Path) -> None:
        """Let the files of a release stand in the place of sql/."""
        self.monkeypatch.setattr(schema, "folder", lambda: folder)

    async def migrate(self, folder: Path) -> None:
        """Bring the database to a release; the clock stays as it was turned."""
        self.use(folder)
        await schema.migrate(self.url)
        await self.shop.turn_clock(0)


def plans_of(folder: Path) -> dict[str, Plan]:
    """The plans of orders as a release says them, by saga type."""
    plans: dict[str, Plan] = {}
    for plan in DEFINED.finditer((folder / PLANS).read_text()):
        found = [NAMES.match(step) for step in STEP.findall(plan[3])]
        plans[plan[2]] = [(names[1], names[2]) for names in found if names]
    return plans
