"""What the database says is told over HTTP in words of HTTP."""

import re

import pytest

from darkpearl import schema
from darkpearl.api.wording import PHRASES, over_http

OF_OPERATORS = {
    "45_imports", "52_plans", "53_pass", "55_engine", "56_history", "57_operators",
    "60_payments", "61_order_fulfilment", "64_gateway_events", "66_forked_orders", "67_batches",
    "68_step_minutes", "72_retention",
}  # fmt: skip
"""What no caller of the API is told: of the engine, and of what is done by hand."""
TOLD = [each for each in schema.files("routines") if each.stem not in OF_OPERATORS]
REFUSAL = re.compile(r"perform refuse\((.*?)\);\n", re.DOTALL)
LITERAL = re.compile(r"'((?:[^']|'')*)'")
SQL = re.compile(r"\bp_[a-z]|\w\(\)|\bselect\b.*\bfrom\b|\b[a-z]+_overview\b")
INSERTS = {"Insert the order first, then", "Insert an order and its order_items"}
"""Refusals of inserts into tables, which nobody makes over HTTP."""


@pytest.mark.parametrize("file", TOLD, ids=lambda file: file.stem)
def test_no_refusal_speaks_sql_over_http(file: schema.Path) -> None:
    """No argument, no function and no query is left of what a caller of the API may be told."""
    for refusal in REFUSAL.findall(file.read_text()):
        for text in LITERAL.findall(refusal):
            if not any(text.startswith(each) for each in INSERTS):
                assert not SQL.search(over_http(text)), text


def test_every_phrase_is_the_databases() -> None:
    """None is there that nothing says any more."""
    said = "".join(each.read_text() for each in schema.files("routines"))
    assert [phrase for phrase in PHRASES if phrase not in said] == []
