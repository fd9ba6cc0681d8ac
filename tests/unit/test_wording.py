"""What the database says is told over HTTP in words of HTTP."""

import re

import pytest

from darkpearl import schema
from darkpearl.api.wording import PHRASES, over_http
from darkpearl.errors import PROBLEMS
from darkpearl.laws import LAWS

OF_OPERATORS = {
    "Declare it with define_plan().",
    "See sparse_event_indexes().",
    "Remove the cause and call retry_saga(); or skip_step(), when it was done by hand.",
    "Remove the cause and call retry_saga().",
    "A plan has move_goods() do %s.",
    "Call fork_order(), which notes it.",
    "See batch_overview.",
    "select listener_id, host, process_id from listener_activity where not is_alive.",
    "See batch_items for what it did.",
    "select gateway, event_id from gateway_events where disposition = ''unmatched''.",
    "Insert the order first, then its order_items with the same warehouse_id, in one transaction.",
    (
        "Insert an order and its order_items, with the same warehouse_id, in one transaction,"
        " or place a new order."
    ),
}
"""Advice of which nothing is left: only who writes SQL can follow it."""
REFUSAL = re.compile(r"perform refuse\((.*?)\);\n", re.DOTALL)
LITERAL = re.compile(r"'((?:[^']|'')*)'")
SQL = re.compile(r"\bp_[a-z]|\w\(\)|\bselect\b.*\bfrom\b|\b[a-z]+_overview\b|\border_items\b")


def said(text: str) -> list[str]:
    """All that the refusals of a file say."""
    return [each for refusal in REFUSAL.findall(text) for each in LITERAL.findall(refusal)]


@pytest.mark.parametrize("file", schema.files("routines"), ids=lambda file: file.stem)
def test_no_refusal_speaks_sql_over_http(file: schema.Path) -> None:
    """No argument, no function and no query is left of what the database refuses, nor nothing."""
    for text in said(file.read_text()):
        told = over_http(text)
        assert not SQL.search(told), text
        assert bool(told.strip()) == bool(text.strip()) or text in OF_OPERATORS, text


def test_no_law_and_no_title_speaks_sql() -> None:
    """What a broken constraint says is told as it is, and so is a problem's title."""
    texts = [
        *(each for law in LAWS.values() for each in law),
        *(p.title for p in PROBLEMS.values()),
    ]
    assert [text for text in texts if SQL.search(text)] == []


def test_what_the_server_denies_names_nothing_of_it() -> None:
    """Neither the function nor the table that somebody may not use, nor a policy of ours."""
    for text in (
        "permission denied for function ship_items",
        "permission denied for table webhook_endpoints",
        'new row violates row-level security policy "staff" for table "orders"',
    ):
        assert over_http(text) == "The role of the token may not do that."


def test_what_is_an_operators_is_left_out_alone() -> None:
    """The sentence beside it stays, and a text without SQL stays as it is."""
    told = over_http("See payments. Then retry_saga(), or turn_back_saga() to give the order up.")
    assert told == "See payments."
    kept = 'items[0] is {"sku": "A; B", "name": "f (x)"}; it has no product_id. Name one'
    assert over_http(kept) == kept


def test_every_phrase_is_the_databases() -> None:
    """None is there that nothing says any more."""
    texts = "".join(each.read_text() for each in schema.files("routines"))
    assert [phrase for phrase in PHRASES if phrase not in texts] == []
