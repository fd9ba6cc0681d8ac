"""routines/45_imports.sql to 47: lines staged by COPY, read in sets, all or nothing."""

import csv
import io
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import Row, Shop

TABLES = {
    "products": "product_imports",
    "inventory": "inventory_imports",
    "movements": "movement_imports",
    "orders": "order_imports",
}
RUN = {
    "products": "import_products({})",
    "inventory": "import_inventory({})",
    "movements": "import_movements({})",
    "orders": "place_imported_orders('', {})",
}


async def stage(shop: Shop, kind: str, text: str) -> None:
    """Copy CSV into the session's table; what is sent has spaces behind its commas taken away."""
    header, _, lines = text.replace(", ", ",").partition("\n")
    await shop.run("select open_import(%s)", kind)
    copy = f"copy {TABLES[kind]} ({header}) from stdin with (format csv)"
    async with shop.connection.cursor().copy(copy.encode()) as copied:
        await copied.write(lines)


async def bring_in(
    shop: Shop, kind: str, text: str, *, skip_bad: bool = False, role: str = "service_role"
) -> tuple[int, dict[int, str]]:
    """Import CSV as a role; what has changed, and the bad lines."""
    async with shop.acting_as(role):
        await stage(shop, kind, text)
        lines, bad, changed = (
            await shop.row(f"select * from {RUN[kind].format(skip_bad)}")
        ).values()
        problems = await shop.rows(f"select line, problem from {TABLES[kind]} where problem > ''")
        await shop.run(f"drop table {TABLES[kind]}")  # another role may be the next
    assert lines == text.strip().count("\n")
    assert bad == len(problems)
    return changed, {row["line"]: row["problem"] for row in problems}


async def products(shop: Shop) -> list[Row]:
    """The catalogue, by SKU."""
    return await shop.rows("select sku, name, unit_price::text as price from products order by sku")


@pytest.fixture
async def named(shop: Shop) -> tuple[UUID, UUID]:
    """Two products, A and B, with ten units of each in Lisbon."""
    return await shop.product(sku="A", on_hand=10), await shop.product("5", sku="B", on_hand=10)


async def test_products_are_known_by_their_sku(shop: Shop) -> None:
    """A new SKU is a new product; of a known one only what is given and differs changes."""
    changed, bad = await bring_in(
        shop, "products", "sku, name, unit_price\nA, One, 1.5\nB, Two, 2\n"
    )
    assert (changed, bad) == (2, {})
    again = "sku, name, unit_price\nA, , 1.50\nB, Two, 3\nC, Three, \n"
    assert await bring_in(shop, "products", again) == (2, {})
    assert [tuple(row.values()) for row in await products(shop)] == [
        ("A", "One", "1.5"),
        ("B", "Two", "3"),
        ("C", "Three", "0"),
    ]
    assert await shop.values("select version from products order by sku") == [1, 2, 1]
    assert await bring_in(shop, "products", again) == (0, {})


async def test_bad_products_are_named_and_keep_the_rest_out(shop: Shop) -> None:
    """One bad line and nothing is imported; each says what is wrong, and can be left out."""
    longest = "A" * 100
    text = (
        f"sku, name, unit_price, currency, is_active\n{longest}, One, 1, USD, true\n"
        ", Two, 1, USD, true\n"
        "B, , 1, USD, true\nC, C, x, USD, true\nD, D, 1.234, USD, true\nE, E, 1, dollars, true\n"
        "F, F, 1, USD, perhaps\nG, G, 1, USD, true\nG, G, 1, USD, true\nH\u200b, H, 1, USD, true\n"
        f"{'I' * 101}, I, 1, USD, true\nJ, {'J' * 256}, 1, USD, true\nK, K, -1, USD, true\n"
        "L, L, 1.5, JPY, true\nM, M, 1000000000000, USD, true\n"
    )
    changed, bad = await bring_in(shop, "products", text)
    assert changed == 0
    assert sorted(bad) == [*range(2, 16)]
    assert await products(shop) == []
    changed, bad = await bring_in(shop, "products", text, skip_bad=True)
    assert (changed, len(bad)) == (1, 14)
    assert [row["sku"] for row in await products(shop)] == [longest]


async def test_inventory_is_counted_and_set(shop: Shop, named: tuple[UUID, UUID]) -> None:
    """A quantity is a count, an empty field leaves what is there, and a new shelf is made."""
    header = "sku, warehouse, quantity_available, reorder_point\n"
    text = f"{header}A, LIS, 7, 2\nB, LIS, , 3\nA, RTM, 4, \n"
    assert await bring_in(shop, "inventory", text) == (3, {})
    assert await shop.stock(named[0]) == (7, 0)
    assert await shop.stock(named[1]) == (10, 0)
    assert await shop.stock(named[0], shop.rotterdam) == (4, 0)
    assert await shop.values("select reorder_point from inventory order by reorder_point") == [
        2,
        3,
        10,
    ]
    assert await bring_in(shop, "inventory", text) == (0, {})


async def test_bad_counts_leave_no_shelf_behind(shop: Shop, named: tuple[UUID, UUID]) -> None:
    """Less than is reserved can't be counted; with the line nothing of the file is done."""
    await shop.order((named[0], 4))
    await shop.advance()
    good = "sku, warehouse, quantity_available\nA, LIS, 3\nB, RTM, 5\n"
    text = f"{good}X, LIS, 1\nB, XXX, 1\nB, LIS, -1\n"
    changed, bad = await bring_in(shop, "inventory", text)
    assert (changed, sorted(bad)) == (0, [3, 4, 5])  # what can't be read comes first
    changed, bad = await bring_in(shop, "inventory", good)
    assert (changed, bad) == (0, {1: "fewer were counted than are reserved"})
    assert await shop.value("select count(*) from inventory") == 2
    changed, bad = await bring_in(shop, "inventory", text, skip_bad=True)
    assert (changed, sorted(bad)) == (1, [1, 3, 4, 5])
    assert await shop.stock(named[0]) == (10, 4)
    assert await shop.stock(named[1], shop.rotterdam) == (5, 0)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("-1, , ", "quantity_available is no number of units"),
        (", x, ", "reorder_point is no number of units"),
        (", , 1.5", "reorder_quantity is no number of units"),
    ],
)
async def test_a_bad_count_says_what_is_wrong(
    shop: Shop, named: tuple[UUID, UUID], line: str, problem: str
) -> None:
    """Each problem of a line is told in words, and a good line beside it waits."""
    text = "sku, warehouse, quantity_available, reorder_point, reorder_quantity\n"
    text += f"A, LIS, {line}\nB, LIS, 3, , \n"
    assert await bring_in(shop, "inventory", text) == (0, {1: problem})
    assert await shop.stock(named[1]) == (10, 0)
    assert await bring_in(shop, "inventory", text, skip_bad=True) == (1, {1: problem})
    assert [await shop.stock(each) for each in named] == [(10, 0), (3, 0)]


async def test_a_shelf_is_counted_once(shop: Shop, named: tuple[UUID, UUID]) -> None:
    """Two counts of a shelf in one file are both bad: nobody knows which of them is right."""
    text = "sku, warehouse, quantity_available\nA, LIS, 7\nB, LIS, 3\nA, LIS, 8\nA, RTM, 1\n"
    problem = "the shelf stands in another line too"
    changed, bad = await bring_in(shop, "inventory", text, skip_bad=True)
    assert (changed, bad) == (2, {1: problem, 3: problem})
    assert [await shop.stock(each) for each in named] == [(10, 0), (3, 0)]


MOVEMENTS = (
    "correlation_id, movement_type, sku, warehouse, quantity, to_warehouse\n"
    "cccc0000-0000-0000-0000-000000000001, receive, A, LIS, 5, \n"
    "cccc0000-0000-0000-0000-000000000001, receive, B, LIS, 5, \n"
    "cccc0000-0000-0000-0000-000000000002, transfer_out, A, LIS, 12, RTM\n"
    "cccc0000-0000-0000-0000-000000000003, adjust, A, LIS, -3, \n"
)


async def test_movements_happen_in_the_order_of_the_file(
    shop: Shop, named: tuple[UUID, UUID]
) -> None:
    """Receipts, corrections and transfers, once under each correlation id; an application may."""
    assert await bring_in(shop, "movements", MOVEMENTS, role="darkpearl_app") == (4, {})
    assert await shop.stock(named[0]) == (0, 0)
    assert await shop.stock(named[0], shop.rotterdam) == (12, 0)
    assert await bring_in(shop, "movements", MOVEMENTS) == (0, {})
    assert await shop.stock(named[1]) == (15, 0)


@pytest.mark.usefixtures("named")
async def test_a_bad_movement_is_left_out_of_what_comes_after_it(shop: Shop) -> None:
    """With bad lines left out, the others are what they would be one by one, in their order."""
    text = (
        "movement_type, sku, warehouse, quantity, to_warehouse\n"
        "adjust, A, LIS, -11, \nadjust, A, LIS, -3, \ntransfer_out, A, LIS, 8, RTM\n"
        "transfer_out, A, LIS, 7, RTM\nadjust, A, RTM, -8, \nadjust, A, RTM, -7, \n"
    )
    changed, bad = await bring_in(shop, "movements", text)
    assert (changed, sorted(bad)) == (0, [1, 3, 5])
    assert await shop.value("select count(*) from stock_movements") == 2
    changed, bad = await bring_in(shop, "movements", text, skip_bad=True)
    assert (changed, sorted(bad)) == (3, [1, 3, 5])
    assert await shop.values("select quantity_available from inventory order by 1") == [0, 0, 10]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("receive, A, LIS, 0, , ", "quantity is no number of units"),
        ("receive, A, LIS, 1.5, , ", "quantity is no number of units"),
        ("receive, A, LIS, 99999999999, , ", "quantity is no number of units"),
        ("receive, A, LIS, -1, , ", "only an adjust may be negative"),
        ("reserve, A, LIS, 1, , ", "a reserve is written by an order's saga alone"),
        ("steal, A, LIS, 1, , ", "there is no movement_type steal"),
        ("receive, X, LIS, 1, , ", "there is no product X"),
        ("receive, A, XXX, 1, , ", "there is no warehouse XXX"),
        ("receive, , LIS, 1, , ", "sku is missing"),
        ("transfer_out, A, LIS, 1, , ", "to_warehouse is missing"),
        ("transfer_out, A, LIS, 1, LIS, ", "a transfer needs two warehouses"),
        ("transfer_in, A, LIS, 1, RTM, ", "a transfer is one line: transfer_out with to_warehouse"),
        ("receive, A, LIS, 1, RTM, ", "only a transfer_out has a to_warehouse"),
        ("receive, A, LIS, 1, , 4711", "correlation_id is no UUID"),
        ("receive, A, LIS, 1000000000, , ", "the shelf would hold more than 1000000000 units"),
    ],
    ids=lambda text: text.replace(" ", ""),
)
@pytest.mark.usefixtures("named")
async def test_a_bad_movement_says_what_is_wrong(shop: Shop, line: str, problem: str) -> None:
    """Each problem of a line is told in words, and a good line beside it waits."""
    header = "movement_type, sku, warehouse, quantity, to_warehouse, correlation_id\n"
    text = f"{header}{line}\nreceive, A, LIS, 1, , \n"
    assert await bring_in(shop, "movements", text) == (0, {1: problem})
    assert await bring_in(shop, "movements", text, skip_bad=True) == (1, {1: problem})


async def test_an_adjustment_has_its_reason(shop: Shop, named: tuple[UUID, UUID]) -> None:
    """Of lines that are written, once; what is bad takes none with it."""
    assert named
    name = uuid4()
    header = "movement_type, sku, warehouse, quantity, reason_code, correlation_id\n"
    text = f"{header}adjust, A, LIS, -2, damaged, {name}\nadjust, B, LIS, -1, , \n"
    assert await bring_in(shop, "movements", text, role="darkpearl_app") == (2, {})
    again = f"{header}adjust, A, LIS, -2, damaged, {name}\nadjust, A, LIS, -1, lost, \n"
    too_many = "adjust, B, LIS, -99, theft, \n"
    assert await bring_in(shop, "movements", again + too_many) == (
        0,
        {3: "more would leave than can be sold"},
    )
    assert await shop.values("select reason_code from movement_reasons") == ["damaged"]
    changed, bad = await bring_in(shop, "movements", again + too_many, skip_bad=True)
    assert (changed, list(bad)) == (1, [3])
    text = f"{header}adjust, A, LIS, -1, mice, \nreceive, A, LIS, 1, found, \n"
    assert await bring_in(shop, "movements", text) == (
        0,
        {1: "there is no reason_code mice", 2: "only an adjust has a reason_code"},
    )
    told = "select reason_code from exported_movements where movement_type = 'adjust'"
    assert await shop.values(told) == ["damaged", None, "lost"]


ORDERS = (
    "reference, warehouse, sku, quantity, notes\n"
    "web-1, LIS, A, 1, ring twice\nweb-1, LIS, B, 2, ring twice\nweb-2, LIS, A, 3, \n"
)


@pytest.mark.usefixtures("named")
async def test_orders_are_placed_from_their_lines(shop: Shop) -> None:
    """Lines of one reference are an order; the same file again places nothing."""
    assert await bring_in(shop, "orders", ORDERS, role="darkpearl_app") == (2, {})
    assert await bring_in(shop, "orders", ORDERS, role="darkpearl_app") == (0, {})
    rows = await shop.rows("select total_amount, notes from orders order by order_number")
    assert [tuple(row.values()) for row in rows] == [(20, "ring twice"), (30, None)]
    await shop.settle(await shop.advance(), {"outcome": "approved", "gateway": "mock"})
    assert await shop.statuses() == {"fulfilled": 2}


async def references(shop: Shop) -> list[tuple[Any, ...]]:
    """The references that orders have, and how many lines."""
    rows = await shop.rows(
        "select reference, (select count(*) from order_items as i where i.order_id = o.id) as lines"
        " from order_overview as o where reference is not null order by 1"
    )
    return [tuple(row.values()) for row in rows]


async def test_an_order_keeps_its_reference(shop: Shop, named: tuple[UUID, UUID]) -> None:
    """It is the shop's own, one in all: whoever placed the order, the file finds it by that."""
    assert await bring_in(shop, "orders", ORDERS, role="darkpearl_app") == (2, {})
    assert await references(shop) == [("web-1", 2), ("web-2", 1)]
    particulars = '{"reference": "web-3"}'
    await shop.order((named[0], 1), p_particulars=particulars)
    header = "order_id, reference, warehouse, sku, quantity\n"
    one, other = uuid4(), uuid4()
    text = f"{header}, web-3, LIS, A, 1\n{one}, web-4, LIS, A, 1\n"
    assert await bring_in(shop, "orders", text) == (1, {})
    assert (await references(shop))[2:] == [("web-3", 1), ("web-4", 1)]
    text = (
        f"{header}, web-3, LIS, A, 2\n{other}, web-4, LIS, A, 1\n{uuid4()}, w-5, LIS, A, 1\n"
        f"{uuid4()}, w-5, LIS, A, 1\n, {101 * 'x'}, LIS, A, 1\n, w\t6, LIS, A, 1\n"
    )
    changed, bad = await bring_in(shop, "orders", text, skip_bad=True)
    assert changed == 1
    assert bad == {
        1: "the order is there already, with other lines or in another warehouse",
        2: "the reference is that of another order",
        4: "the reference is that of another order",
        5: "reference has more than 100 characters",
        6: "reference has characters that can't be seen, or spaces too many",
    }


@pytest.mark.usefixtures("named")
async def test_a_batch_is_what_references_are_unique_in(shop: Shop) -> None:
    """The same references in another batch are other orders; in one, other lines are refused."""
    for batch in ("monday", "tuesday"):
        await stage(shop, "orders", ORDERS)
        placed = await shop.value("select placed from place_imported_orders(%s)", batch)
        assert placed == 2
    await stage(shop, "orders", ORDERS.replace("A, 3", "A, 4"))
    row = await shop.row("select bad, placed from place_imported_orders('monday')")
    assert row == {"bad": 1, "placed": 0}
    assert await references(shop) == []


async def test_an_order_id_is_the_clients_to_choose(shop: Shop, named: tuple[UUID, UUID]) -> None:
    """Lines may name products and warehouses by id, and the order's own id."""
    order = uuid4()
    text = f"order_id, warehouse_id, product_id, quantity\n{order}, {shop.lisbon}, {named[0]}, 2\n"
    assert await bring_in(shop, "orders", text) == (1, {})
    assert await shop.values("select id from orders") == [order]
    assert await bring_in(shop, "orders", text) == (0, {})


async def test_an_order_with_a_bad_line_is_left_out_whole(
    shop: Shop, named: tuple[UUID, UUID]
) -> None:
    """Bad lines are named, and none of the lines of their orders is placed without them."""
    await shop.product("5", sku="OLD", is_active=False)
    await shop.product("5", sku="EUR", currency="EUR")
    text = (
        "reference, warehouse, sku, quantity, unit_price\n"
        "a, LIS, A, 1, \na, LIS, B, 0, \nb, LIS, A, 1, \nb, LIS, A, 1, \nc, LIS, OLD, 1, \n"
        "d, LIS, EUR, 1, \ne, LIS, A, 1, 9\nf, LIS, A, 1, \nf, RTM, B, 1, \n, LIS, A, 1, \n"
        "g, LIS, A, 1, 10\n"
    )
    changed, bad = await bring_in(shop, "orders", text, role="darkpearl_app")
    assert (changed, sorted(bad)) == (0, [2, 3, 4, 5, 6, 7, 9, 10])
    changed, bad = await bring_in(shop, "orders", text, role="darkpearl_app", skip_bad=True)
    assert (changed, len(bad)) == (1, 8)
    assert await shop.values("select product_id from order_items") == [named[0]]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"reference": ""}, "order_id or reference is missing"),
        ({"order_id": "4711"}, "order_id is no UUID"),
        ({"customer_id": "x" * 256}, "customer_id has more than 255 characters"),
        (
            {"customer_id": "ann\u200b"},
            "customer_id has characters that can't be seen, or spaces too many",
        ),
        ({"currency": "usd"}, "currency is no code of ISO 4217"),
        ({"notes": "x" * 2001}, "notes have more than 2000 characters"),
        ({"quantity": ""}, "quantity is no number from 1 to 1000000"),
        ({"quantity": "some"}, "quantity is no number from 1 to 1000000"),
        ({"quantity": "0"}, "quantity is no number from 1 to 1000000"),
        ({"quantity": "1000001"}, "quantity is no number from 1 to 1000000"),
        ({"unit_price": "free"}, "unit_price is no amount"),
        ({"unit_price": "1.001"}, "unit_price has more decimals than its currency"),
        ({"pay_by": "tomorrow"}, "pay_by is no date and time with an offset"),
        ({"pay_by": "2999-01-01T10:00:00"}, "pay_by is no date and time with an offset"),
        ({"pay_by": "2999-02-30T10:00:00Z"}, "pay_by is no date and time with an offset"),
        ({"pay_by": "2999-01-01T10:00:00Z"}, "pay_by is not to come within 366 days"),
        ({"pay_by": "2020-01-01 10:00+01"}, "pay_by is not to come within 366 days"),
        ({"warehouse": "OLD"}, "the warehouse takes no orders"),
        ({"sku": "OLD"}, "the product is not sold any more"),
        ({"sku": "EUR"}, "the product is priced in EUR"),
    ],
    ids=lambda each: "" if isinstance(each, dict) else each.replace(" ", "_"),
)
@pytest.mark.usefixtures("named")
async def test_a_bad_line_of_an_order_says_what_is_wrong(
    shop: Shop, wrong: dict[str, str], problem: str
) -> None:
    """Each problem of a line is told in words, and a good order beside it waits."""
    await shop.product(sku="OLD", is_active=False)
    await shop.product(sku="EUR", currency="EUR")
    await shop.run("insert into warehouses (code, name, is_active) values ('OLD', 'Old', false)")
    good = {
        "reference": "a", "order_id": "", "customer_id": "", "currency": "", "notes": "",
        "pay_by": "", "warehouse": "LIS", "sku": "A", "quantity": "1", "unit_price": "",
    }  # fmt: skip
    lines = [good, good | {"reference": "b"} | wrong]
    text = "\n".join([",".join(good), *(",".join(line.values()) for line in lines), ""])
    assert await bring_in(shop, "orders", text) == (0, {2: problem})
    assert await bring_in(shop, "orders", text, skip_bad=True) == (1, {2: problem})
    assert await shop.value("select count(*) from orders") == 1


async def test_an_imported_order_is_held_until_its_pay_by(
    shop: Shop, named: tuple[UUID, UUID]
) -> None:
    """Its stock is reserved and nobody is charged; lines of one order say the same moment."""
    moments = (
        "select to_char((clock() + interval '1 hour') at time zone 'UTC', f) as it from"
        """ (values ('YYYY-MM-DD"T"HH24:MI:SS"Z"'), ('YYYY-MM-DD HH24:MI:SS.US+00')) as t (f)"""
    )
    one, other = await shop.values(moments)
    lines = ["reference, warehouse, sku, quantity, pay_by", f"a, LIS, A, 1, {one}"]
    text = "\n".join([*lines, f"b, LIS, A, 1, {other}", "c, LIS, A, 1,", ""])
    assert await bring_in(shop, "orders", text, role="darkpearl_app") == (3, {})
    assert await bring_in(shop, "orders", text, role="darkpearl_app") == (0, {})
    assert len(await shop.advance()) == 1
    assert await shop.statuses() == {"reserved": 2, "payment_processing": 1}
    text = "\n".join([*lines, f"d, LIS, A, 1, {one}", f"d, LIS, B, 1, {other}", ""])
    _, bad = await bring_in(shop, "orders", text)
    assert list(bad) == [3]
    assert "pay_by" in bad[3]
    exported = await shop.values("select distinct pay_by::text from exported_orders order by 1")
    assert len(exported) == 3
    assert named


async def test_only_staff_set_a_price(shop: Shop, named: tuple[UUID, UUID]) -> None:
    """A price that isn't the catalogue's is bad from an application and taken from staff."""
    assert named
    text = "reference, warehouse, sku, quantity, unit_price\na, LIS, A, 1, 9\n"
    changed, bad = await bring_in(shop, "orders", text, role="darkpearl_app")
    assert (changed, bad) == (0, {1: "unit_price is not the catalogue's"})
    assert await bring_in(shop, "orders", text) == (1, {})
    assert await shop.value("select total_amount from orders") == 9


@pytest.mark.parametrize("kind", ["products", "inventory", "movements", "orders"])
async def test_an_export_is_an_import_that_changes_nothing(
    shop: Shop, named: tuple[UUID, UUID], kind: str
) -> None:
    """What the views export, of a shop in which all has happened, comes back without a change."""
    await shop.run("select transfer_stock(%s, %s, %s, 2)", shop.lisbon, shop.rotterdam, named[0])
    await shop.run("update products set description = %s where sku = 'A'", 'a "b", c\nd')
    fulfilled = await shop.fulfilled((named[0], 1), (named[1], 2))
    await shop.take_back(fulfilled, (named[0], 1))
    await shop.order((named[0], 3))
    await shop.advance()
    rows = await shop.rows(f"select * from exported_{kind}")
    text = io.StringIO()
    written = csv.DictWriter(text, rows[0])
    written.writeheader()
    written.writerows(rows)
    before = await everything(shop)
    async with shop.acting_as("service_role"):
        await shop.run("select open_import(%s)", kind)
        copy = f"copy {TABLES[kind]} ({', '.join(rows[0])}) from stdin with (format csv, header)"
        async with shop.connection.cursor().copy(copy.encode()) as copied:
            await copied.write(text.getvalue())
        result = await shop.row(f"select * from {RUN[kind].format('false')}")
    assert tuple(result.values()) == (len(rows), 0, 0)
    assert await everything(shop) == before


async def test_an_export_tells_the_other_end_by_its_code(
    shop: Shop, named: tuple[UUID, UUID]
) -> None:
    """A transfer is one line with the warehouse that received; others keep what they refer to."""
    await shop.run("select transfer_stock(%s, %s, %s, 2)", shop.lisbon, shop.rotterdam, named[0])
    order = await shop.fulfilled((named[1], 1))
    await shop.take_back(order)
    rows = await shop.rows(
        "select movement_type::text, to_warehouse, reference_type, reference_id"
        " from exported_movements where movement_type = 'transfer_out' or reference_id is not null"
    )
    assert [tuple(row.values()) for row in rows] == [
        ("transfer_out", "RTM", None, None),
        ("receive", None, "return", order),
    ]


async def everything(shop: Shop) -> list[Any]:
    """All rows that an import could change."""
    tables = ("products", "inventory", "stock_movements", "orders", "order_items", "sagas")
    return [await shop.rows(f"select * from {table} order by 1, 2") for table in tables]


async def test_an_import_has_a_kind(shop: Shop) -> None:
    """What can't be imported is refused with what can."""
    with shop.refused("DP015") as refusal:
        await shop.run("select open_import('customers')")
    assert "orders" in refusal.hint


async def test_both_ends_of_a_transfer_or_none(shop: Shop, named: tuple[UUID, UUID]) -> None:
    """Who calls the function itself can't move one end of a transfer without the other."""
    call = (
        "select * from record_movements(array[asked_movement(1, new_id(), %s, %s, %s, 1,"
        " 'warehouse', %s, null)])"
    )
    async with shop.acting_as("darkpearl_app"):
        for kind in ("transfer_in", "transfer_out"):
            row = await shop.row(call, shop.lisbon, named[0], kind, shop.rotterdam)
            assert row["problem"] == "the other end of the transfer is missing"
    assert await shop.stock(named[0]) == (10, 0)


async def test_a_line_that_is_half_known_is_told_once(shop: Shop, named: tuple[UUID, UUID]) -> None:
    """Of two movements of a line one was written before and the other is bad: the line is bad."""
    one, two = named
    call = (
        "select * from record_movements(array["
        "asked_movement(7, %s, %s, %s, 'receive', 5, null, null, null),"
        "asked_movement(7, %s, %s, %s, 'receive', %s, null, null, null)], true)"
    )
    operation = uuid4()
    first = (operation, shop.lisbon, one, operation, shop.lisbon, two)
    async with shop.acting_as("darkpearl_app"):
        assert await shop.rows(call, *first, 5) == []
        assert await shop.rows(call, *first, 5) == [{"line": 7, "problem": None}]
        (told,) = await shop.rows(call, *first, 6)
    problem = "the correlation id stands for receive of 5 units"
    assert told == {"line": 7, "problem": problem}
    assert (await shop.stock(one), await shop.stock(two)) == ((15, 0), (15, 0))


READS = (
    "select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)"
    " from pg_stat_xact_all_tables where schemaname = 'darkpearl'"
)


@pytest.mark.parametrize("kind", ["movements", "orders"])
async def test_imports_are_linear(shop: Shop, kind: str) -> None:
    """Eight times as many lines read eight times as much, within a quarter, in one session."""
    if kind == "orders":
        await shop.run("set constraints all deferred")
    await shop.run(
        "insert into products (sku, name) select 'P' || n, n from generate_series(1, 200) as n"
    )
    reads = []
    for lines in (250, 2000):
        await shop.run("select open_import(%s)", kind)
        text = {
            "movements": "insert into movement_imports (movement_type, sku, warehouse, quantity)"
            " select 'receive', 'P' || 1 + n %% 200, 'LIS', '1' from generate_series(1, %s) as n",
            "orders": "insert into order_imports (reference, sku, warehouse, quantity)"
            " select 'R' || n, 'P' || 1 + n %% 200, 'LIS', '1' from generate_series(1, %s) as n",
        }[kind]
        await shop.run(text, lines)
        async with shop.connection.transaction(force_rollback=True):
            before = await shop.value(READS)
            row = await shop.row(f"select * from {RUN[kind].format('false')}")
            assert [*row.values()][1:] == [0, lines]
            reads.append(int(await shop.value(READS) - before))
    assert reads[1] <= 10 * reads[0]
