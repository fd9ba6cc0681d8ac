"""The house's rule: SQL stands in sql/; what Python says to the database is one line."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "darkpearl"
LONGEST = 160
SQL = re.compile(
    r"\s*(select|insert|update|delete|merge|with|create|alter|drop|grant|copy)\b", re.IGNORECASE
)
EXCEPTIONS = {
    # Which functions no file has any more is asked while the files are being applied.
    "schema": 1,
    # What the database has of the routines is compared before there may be any of them.
    "fingerprint": 2,
    # A database that was restored may have none of our functions yet, or others'.
    "restored": 6,
    # Which months wait for an export is asked of another table for each kind.
    "retention": 1,
    # The simulated payment service keeps its books in SQLite, a file of its own.
    "paysim.rules": 1,
    # Which columns of a view a table in the terminal has, and what the server says of itself.
    "cli": 19,
    # What the server's catalogues say, also where none of our functions are, or others; and how
    # cells and moves are with each other.
    "doctor": 25,
    # What catalogues of two servers say, one of which may have none of our functions yet.
    "cells": 2,
}
"""Long statements by module, or by room, each for a reason. May only shrink."""
ROOMS = ("cells", "cli", "doctor")


def literals(source: str) -> Iterator[str]:
    """Every text of a module but its docstrings; what an f-string puts in is left out of it."""
    tree = ast.parse(source)
    apart = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            apart.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            apart |= {each for each in node.values if isinstance(each, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values
            )
        elif isinstance(node, ast.Constant) and node not in apart:
            if isinstance(node.value, str):
                yield node.value
            elif isinstance(node.value, bytes):
                yield node.value.decode(errors="replace")


def long_statements(source: str) -> list[str]:
    """What looks like SQL and is more than one line, or as long as more than one."""
    return [
        text
        for text in literals(source)
        if SQL.match(text) and ("\n" in text.strip() or len(text) > LONGEST)
    ]


def test_statements_are_one_line() -> None:
    """What takes more than a line is a view or a function, and has a name."""
    found: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        room, *rest = path.relative_to(PACKAGE).with_suffix("").parts
        name = room if room in ROOMS else ".".join((room, *rest))
        found[name] += len(long_statements(path.read_text()))
    assert {name: count for name, count in found.items() if count} == EXCEPTIONS


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('query = """\n    select 1\n    from orders\n"""', 1),
        ('query = f"select {columns}\\n from orders"', 1),
        ('query = b"with o as (select 1)\\nselect"', 1),
        (f'query = (\n"INSERT into {"o" * 80}"\n"{"o" * 80}"\n)', 1),
        ('run("select 1 from orders", f"update {table}")', 0),
        ('def select():\n    """Select what\n\n    there is."""', 0),
        ('"""Within\n\nthis."""\nlines = "one\\nselect"', 0),
    ],
)
def test_long_statements_are_found(source: str, count: int) -> None:
    """However they are written down; prose is none."""
    assert len(long_statements(source)) == count
