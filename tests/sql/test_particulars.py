"""routines/37_particulars.sql: what an order is for, until it has ended."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb
from shop import Row, Shop

ADDRESS = {"name": "Ann", "line1": "1 Rua da Rosa", "city": "Lisboa", "country": "PT"}
WHOLE = {
    "reference": "W-1001",
    "email": "ann@example.com",
    "shipping_address": ADDRESS,
    "billing_address": {**ADDRESS, "company": "Pearls Lda"},
    "metadata": {"channel": "web", "campaign": {"id": 7, "name": "spring"}},
}
PERSONAL = ("email", "shipping_address", "billing_address")


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Ten units in Lisbon."""
    return await shop.product(on_hand=10)


@pytest.fixture
async def order(shop: Shop, product: UUID) -> UUID:
    """An order that says all that it can."""
    return await shop.order((product, 1), p_particulars=Jsonb(WHOLE))


async def particulars(shop: Shop, order: UUID) -> Row:
    """What an order says it is for."""
    row = await shop.row("select * from order_particulars where order_id = %s", order)
    return {name: row[name] for name in WHOLE}


async def change(shop: Shop, order: UUID, patch: Any, role: str = "darkpearl_app") -> Row:
    """An application changes what an order is for."""
    async with shop.acting_as(role):
        return await shop.row("select * from update_order(%s, %s)", order, Jsonb(patch))


async def test_an_order_says_what_it_is_for(shop: Shop, product: UUID, order: UUID) -> None:
    """place_order() keeps all of it; an order that says nothing has no row, and shows nothing."""
    plain = await shop.order((product, 1))
    assert await particulars(shop, order) == WHOLE
    assert await shop.values("select order_id from order_particulars") == [order]
    shown = await shop.row("select * from order_details where id = %s", order)
    assert {name: shown[name] for name in WHOLE} == WHOLE
    shown = await shop.row("select * from order_details where id = %s", plain)
    assert {name: shown[name] for name in WHOLE} == dict.fromkeys(WHOLE) | {"metadata": {}}
    assert shown["version"] == 1


async def test_an_insert_says_it_too(shop: Shop, product: UUID) -> None:
    """An application writes the table by itself, with the order or later."""
    insert = (
        "insert into order_particulars (order_id, warehouse_id, reference, metadata)"
        " values (%s, %s, %s, %s)"
    )
    async with shop.acting_as("darkpearl_app"), shop.connection.transaction():
        first = await shop.order((product, 1))
        await shop.run(insert, first, shop.lisbon, "A", Jsonb({"a": 1}))
    second = await shop.order((product, 1))
    async with shop.acting_as("darkpearl_app"):
        await shop.run(insert, second, shop.lisbon, "B", Jsonb({}))
        await shop.run("update order_particulars set email = 'b@c.d' where reference = 'B'")
    rows = await shop.rows("select order_id, email, version from order_particulars order by 1")
    assert [tuple(row.values()) for row in rows] == [(first, None, 1), (second, "b@c.d", 2)]
    with shop.refused("DP010"):
        await shop.run(insert, uuid4(), shop.lisbon, "C", Jsonb({}))
    with shop.refused("DP010"):
        await shop.run(insert, first, shop.rotterdam, "C", Jsonb({}))
    with shop.refused("DP005"):
        await shop.run("update order_particulars set order_id = %s where version = 2", first)


async def test_a_change_is_a_merge_patch(shop: Shop, order: UUID) -> None:
    """Members are changed, null takes one away, the rest stays: RFC 7396."""
    patch = {
        "email": None,
        "shipping_address": {"line2": "2 esq", "name": None},
        "billing_address": None,
        "metadata": {"campaign": {"id": None, "name": "summer"}, "tags": [None, {"a": None}]},
    }
    row = await change(shop, order, patch)
    assert {name: row[name] for name in WHOLE} == {
        "reference": "W-1001",
        "email": None,
        "shipping_address": {
            "line1": "1 Rua da Rosa",
            "line2": "2 esq",
            "city": "Lisboa",
            "country": "PT",
        },
        "billing_address": None,
        "metadata": {"channel": "web", "campaign": {"name": "summer"}, "tags": [None, {"a": None}]},
    }
    assert row["version"] == 2
    assert (await change(shop, order, {"metadata": None}))["metadata"] == {}
    assert (await change(shop, order, {}))["version"] == 3


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
async def test_merge_patch_is_that_of_the_rfc(
    shop: Shop, target: Any, patch: Any, result: Any
) -> None:
    """The examples of RFC 7396, appendix A."""
    merged = await shop.value("select merge_patch(%s, %s)", Jsonb(target), Jsonb(patch))
    assert merged == result


async def test_a_patch_has_a_depth(shop: Shop, order: UUID) -> None:
    """Objects in objects end somewhere, before the stack does."""
    deep = '{"metadata": ' + '{"a": ' * 2000 + "1" + "}" * 2001
    with shop.refused("DP015"):
        await shop.run("select update_order(%s, %s)", order, deep)


@pytest.mark.parametrize(
    ("wrong", "sqlstate"),
    [
        ([], "DP015"),
        (None, "DP015"),
        ({"status": "fulfilled"}, "DP015"),
        ({"email": 1}, "DP015"),
        ({"reference": ["W"]}, "DP015"),
        ({"email": "ann"}, "23514"),
        ({"email": "ann @example.com"}, "23514"),
        ({"email": "a" * 253 + "@b"}, "23514"),
        ({"reference": ""}, "23514"),
        ({"reference": "W\t1"}, "23514"),
        ({"reference": "x" * 101}, "23514"),
        ({"reference": "e\u0301"}, "23514"),
        ({"shipping_address": "Lisboa"}, "23514"),
        ({"shipping_address": {}}, "23514"),
        ({"shipping_address": {"street": "Rua da Rosa"}}, "23514"),
        ({"shipping_address": {"line1": 1}}, "23514"),
        ({"shipping_address": {"line1": "\u200b"}}, "23514"),
        ({"shipping_address": {"line1": "x" * 256}}, "23514"),
        ({"billing_address": {"country": "Portugal"}}, "23514"),
        ({"metadata": []}, "23514"),
        ({"metadata": {"a": "x" * 16384}}, "23514"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    shop: Shop, product: UUID, wrong: Any, sqlstate: str
) -> None:
    """When an order is placed, or later; it stays as it was."""
    if wrong is not None:
        with shop.refused(sqlstate):
            await shop.order((product, 1), p_particulars=Jsonb(wrong))
    order = await shop.order((product, 1), p_particulars=Jsonb({"reference": "before"}))
    with shop.refused(sqlstate):
        await change(shop, order, wrong)
    assert await shop.value("select reference from order_particulars") == "before"


async def test_a_reference_is_one_orders(shop: Shop, product: UUID, order: UUID) -> None:
    """No two orders share one, in whatever warehouse; who changes its own gives it back."""
    await shop.receive(product, 1, shop.rotterdam)
    other = await shop.order((product, 1), warehouse=shop.rotterdam)
    with pytest.raises(UniqueViolation):
        await change(shop, other, {"reference": "W-1001"})
    await change(shop, order, {"reference": "W-1002"})
    await change(shop, other, {"reference": "W-1001"})
    found = "select order_id from order_particulars where reference = %s"
    assert await shop.values(found, "W-1001") == [other]


async def test_notes_are_changed_with_the_rest(shop: Shop, product: UUID) -> None:
    """They stand in the order; its version counts them, once for each change."""
    order = await shop.order((product, 1), p_notes="ring twice")
    update = "select version from update_order(%s, %s, %s)"
    note = Jsonb({"notes": "don't ring", "email": "a@example.com"})
    assert await shop.value(update, order, note, [1]) == 1
    with shop.refused("DP035"):
        await shop.run(update, order, note, [1])
    assert await shop.value(update, order, note, [2]) == 1, "nothing is new"
    assert await shop.value(update, order, Jsonb({"notes": None}), [2]) == 2
    shown = await shop.row("select notes, email, version from order_details where id = %s", order)
    assert shown == {"notes": None, "email": "a@example.com", "version": 3}
    with shop.refused("DP015"):
        await change(shop, order, {"notes": 1})
    with shop.refused("23514"):
        await change(shop, order, {"notes": 2001 * "x"})


@pytest.mark.parametrize("end", ["fulfilled", "cancelled"])
async def test_what_has_ended_stays_as_it_was(
    shop: Shop, product: UUID, order: UUID, end: str
) -> None:
    """Neither function nor statement changes what an ended order was for, or says it afterwards."""
    silent = await shop.order((product, 1))
    if end == "cancelled":
        await shop.cancel(order)
        await shop.cancel(silent)
    requests = await shop.advance()
    await shop.settle(requests, {"outcome": "approved", "gateway": "mock", "reference": "ch_1"})
    assert await shop.statuses() == {end: 2}
    for each in order, silent:
        with shop.refused("DP040"):
            await change(shop, each, {"email": "eve@example.com"})
    for column, value in WHOLE.items():
        other = Jsonb({"name": "Eve"}) if isinstance(value, dict) else f"eve-{value}"
        with shop.refused("DP040"):
            await shop.run(f"update order_particulars set {column} = %s", other)
    with shop.refused("DP040"):
        await shop.run("update order_particulars set reference = null")
    assert await particulars(shop, order) == WHOLE


async def test_a_version_is_what_was_read(shop: Shop, order: UUID, product: UUID) -> None:
    """Who names another version than the present one is refused, of a silent order too."""
    update = "select version from update_order(%s, %s, %s)"
    email = Jsonb({"email": "b@example.com"})
    shown = await shop.value("select version from order_confirmations where id = %s", order)
    with shop.refused("DP035"):
        await shop.run(update, order, email, [shown + 1])
    with shop.refused("DP035"):
        await shop.run(update, order, email, [])
    await shop.run(update, order, email, [shown])
    with shop.refused("DP035"):
        await shop.run(update, order, email, [shown])
    silent = await shop.order((product, 1))
    await shop.run(update, silent, email, [1])
    with shop.refused("DP035"):
        await shop.run(update, silent, email, [1])


async def test_customers_say_their_part_of_their_own_orders(
    shop: Shop, as_customer: Callable[..., Awaitable[list[Any]]], product: UUID
) -> None:
    """Email and addresses, by the function alone; reference and metadata are the shop's."""
    items = json.dumps([{"product_id": str(product), "quantity": 1}])
    place = "select id from place_order(%s, %s, p_particulars => %s)"
    mine = Jsonb({"email": "ann@example.com", "shipping_address": ADDRESS})
    (order,) = await as_customer("ann", place, shop.lisbon, items, mine)
    for shops in {"reference": "X"}, {"metadata": {"vip": True}}, {"notes": "vip"}:
        with shop.refused("42501"):
            await as_customer("ann", place, shop.lisbon, items, Jsonb(shops))
        with shop.refused("42501"):
            await as_customer(
                "ann", "select update_order(%s, %s)", order["id"], Jsonb({"email": None, **shops})
            )
    update = "select * from update_order(%s, %s)"
    (row,) = await as_customer("ann", update, order["id"], Jsonb({"billing_address": ADDRESS}))
    assert row["billing_address"] == ADDRESS
    with shop.refused("DP010"):
        await as_customer("eve", update, order["id"], Jsonb({"email": "eve@example.com"}))
    look = "select email from order_particulars"
    assert await as_customer("ann", look) == [{"email": "ann@example.com"}]
    assert await as_customer("eve", look) == []
    with shop.refused("42501"):
        await as_customer("ann", "update order_particulars set email = null")
    engraved = json.dumps([{"product_id": str(product), "quantity": 1, "metadata": {"a": 1}}])
    with shop.refused("42501"):
        await as_customer("ann", place, shop.lisbon, engraved, mine)


async def test_a_customer_is_erased_from_what_has_ended(shop: Shop, product: UUID) -> None:
    """Email and addresses go, of that customer's ended orders alone; who did it says why."""
    said = Jsonb(WHOLE | {"reference": None})
    ended = await shop.order((product, 1), p_customer_id="ann", p_particulars=said)
    others = await shop.order((product, 1), p_customer_id="bob", p_particulars=said)
    await shop.settle(
        await shop.advance(), {"outcome": "approved", "gateway": "mock", "reference": "ch_1"}
    )
    open_one = await shop.order((product, 1), p_customer_id="ann", p_particulars=said)
    erase = "select erase_customer('ann', %s)"
    with shop.refused("DP015"):
        await shop.run(erase, " ")
    async with shop.acting_as("darkpearl_app"):
        with shop.refused("42501"):
            await shop.run(erase, "asked for it")
    async with shop.acting_as("service_role"):
        assert await shop.value(erase, "asked for it") == 1
        assert await shop.value(erase, "asked for it") == 0
    row = await particulars(shop, ended)
    assert [row[name] for name in PERSONAL] == [None, None, None]
    assert row["metadata"] == WHOLE["metadata"]
    for order in others, open_one:
        assert (await particulars(shop, order))["email"] == "ann@example.com"
    noted = await shop.rows("select action, subject, reason from action_log order by id limit 1")
    assert [tuple(row.values()) for row in noted] == [("erase_customer", "ann", "asked for it")]


async def test_lines_products_and_refunds_have_metadata(shop: Shop) -> None:
    """An object each, which comes back as it was written; a line's is frozen with the line."""
    product = await shop.product(on_hand=2, metadata=Jsonb({"color": "white"}))
    items = json.dumps(
        [
            {"product_id": str(product), "quantity": 1, "metadata": {"engraved": "For Ann"}},
            {"product_id": str(product), "quantity": 1},
        ]
    )
    async with shop.acting_as("darkpearl_app"):
        order = await shop.value("select id from place_order(%s, %s)", shop.lisbon, items)
    (lines,) = await shop.values("select items from order_confirmations")
    assert [line["metadata"] for line in lines] == [{"engraved": "For Ann"}, {}]
    with shop.refused("DP005"):
        await shop.run("update order_items set metadata = '{}'")
    await shop.settle(
        await shop.advance(), {"outcome": "approved", "gateway": "mock", "reference": "ch_1"}
    )
    async with shop.acting_as("darkpearl_app"):
        await shop.run("select refund_order(%s, 1, p_metadata => '{\"ticket\": 7}')", order)
    assert await shop.values("select metadata from order_refunds") == [{"ticket": 7}]
    for wrong in ("[]", '"a"', json.dumps({"a": "x" * 16384})):
        with shop.refused("23514"):
            await shop.run("update products set metadata = %s", wrong)
    with shop.refused("DP015"):
        await shop.order(p_items=items.replace('{"engraved": "For Ann"}', "[1]"))


async def test_a_return_has_metadata(shop: Shop, product: UUID) -> None:
    """Said by applications of returns that are there, changed member by member."""
    order, name = await shop.fulfilled((product, 2)), uuid4()
    await shop.take_back(order, (product, 1), return_id=name)
    describe = "select metadata from describe_return(%s, %s)"
    async with shop.acting_as("darkpearl_app"):
        for _ in range(2):
            said = await shop.value(describe, name, Jsonb({"rma": 7, "box": "torn"}))
            assert said == {"rma": 7, "box": "torn"}
        await shop.run(describe, name, Jsonb({"box": None}))
    assert await shop.values("select metadata from order_returns") == [{"rma": 7}]
    for other in uuid4(), order:
        with shop.refused("DP010"):
            await shop.run(describe, other, Jsonb({}))
    with shop.refused("23514"):
        await shop.run(describe, name, Jsonb([]))
