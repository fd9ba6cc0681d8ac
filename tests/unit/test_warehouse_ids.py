"""The house's rule: whatever touches a warehouse's table names the warehouse.

That is what lets warehouses live in several databases, and move. Statements are read by
PostgreSQL's own parser. What doesn't follow the rule stands in without_warehouse.txt, with the
function, view or policy that has it and how it begins at the table: it looks something up by an
id, which is one in the whole database and is given without a warehouse, or it goes through all
warehouses at once. The list may only shrink.
"""

from collections import Counter
from pathlib import Path

import pytest
from table_uses import KEY, SQL, schema_types, uses_of

FILES = sorted([*(SQL / "routines").glob("*.sql"), *(SQL / "compiled").glob("*.sql")])
LISTED = Path(__file__).with_name("without_warehouse.txt").read_text().splitlines()
TABLES, TYPES = schema_types()


def strays(text: str) -> Counter[str]:
    """What touches a warehouse's table without a word of which warehouse, and how often."""
    return Counter(
        f"{name}: {use.excerpt}" for name, use in uses_of(text, TABLES, TYPES) if not use.is_named
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_statements_name_the_warehouse(file: Path) -> None:
    """What touches a table of warehouses says of which; what is mended is off the list."""
    found, prefix = strays(file.read_text()), f"{file.stem} "
    listed = Counter(each.removeprefix(prefix) for each in LISTED if each.startswith(prefix))
    assert sorted((found - listed).elements()) == [], "name its warehouse_id"
    assert sorted((listed - found).elements()) == [], "take it off the list"


def test_the_list_is_of_files_that_there_are() -> None:
    """No exception outlives its file, and the list is in order, so that each can be found."""
    assert {each.split()[0] for each in LISTED} <= {file.stem for file in FILES}
    assert sorted(LISTED) == LISTED


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_else_passes_for_the_warehouse(file: Path) -> None:
    """With another name in its place, not one of all the statements would do."""
    text = file.read_text().replace(KEY, "elsewhere_id")
    assert not any(use.is_named for _, use in uses_of(text, TABLES, TYPES))


def test_the_tables_are_those_of_the_schema() -> None:
    """What belongs to a warehouse is found by its column, in each file of the schema."""
    assert {"inventory", "stock_movements", "orders", "sagas", "payments", "refunds"} <= TABLES
    assert not {"products", "warehouses", "saga_steps"} & TABLES


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("select from orders as o where o.id = p_id", "from orders as o where o.id = p_id"),
        ("select from orders as o where (o.id, o.warehouse_id) = (p_id, p_key)", ""),
        ("select from sagas where id = p_id", "from sagas where id = p_id"),
        ("select warehouse_id from sagas where id = p_id", ""),
        ("update sagas as s set position = 1 where s.id = 1", "update sagas as s set position = 1"),
        ("update sagas as s set warehouse_id = v.warehouse_id from v", "update sagas as s set"),
        ("delete from refunds as r using payments as p where r.warehouse_id = 1", "from payments"),
        ("delete from refunds as r using payments as p where p.warehouse_id = 1", "delete from r"),
        ("insert into orders (id, warehouse_id) values (1, 2)", ""),
        ("insert into orders (id) select w.warehouse_id from w", "insert into orders (id) sel"),
        ("insert into orders select * from came", "insert into orders select"),
        (
            "merge into sagas as s using v on s.id = v.id when matched then delete",
            "merge into sagas as s using v",
        ),
        ("merge into sagas as s using v on s.warehouse_id = v.w when matched then delete", ""),
        ("select from products as p, sagas as s where p.id = s.id", "from sagas as s where"),
        ("select from products as p where p.id = any(array[p_id])", ""),
        ("select from orders as o join sagas as s using (id, warehouse_id)", ""),
        ("select from orders as o join sagas as s using (id)", "from orders as o join|from sagas"),
        # A name within stands for what is nearest.
        (
            "select from orders as s where (select count(s.warehouse_id) from sagas as s) = 1",
            "from orders as s where",
        ),
        (
            "select from orders as o, lateral (select from sagas as s where s.id = o.warehouse_id)",
            "from sagas as s where",
        ),
        # What a WITH makes is no table, and its columns are none of a table's.
        ("with orders as (select 1) select from orders", ""),
        (
            "with o as (select 1 as warehouse_id) select o.warehouse_id from o, sagas as s",
            "from sagas as s",
        ),
        ("select v_saga.warehouse_id from orders as o where o.id = 1", "from orders as o where"),
        ("select from darkpearl.orders where id = 1 -- warehouse_id", "from orders where id"),
        ("select 'warehouse_id' from orders as o", "from orders as o"),
        ("select from orders as o union select from sagas as s", "from orders|from sagas"),
    ],
)
def test_strays_are_found(statement: str, found: str) -> None:
    """In reads and writes, by the name that the table has in the statement."""
    expected = found.split("|") if found else []
    strayed = [use.excerpt for _, use in uses_of(statement, TABLES, TYPES) if not use.is_named]
    assert len(strayed) == len(expected)
    for stray, begins in zip(strayed, expected, strict=True):
        assert stray.replace("darkpearl.", "").startswith(begins)


PLPGSQL = "create function f() returns setof uuid language plpgsql as $$"


@pytest.mark.parametrize(
    "made",
    [
        "create function f() returns void language sql begin atomic {}; end",
        "create function f() returns uuid language sql return ({})",
        "create function f() returns uuid language sql as $$ {} $$",
        PLPGSQL + " begin perform ({}); end $$",
        PLPGSQL + " begin return query {}; end $$",
        PLPGSQL + " declare v_a amount; v_b orders[]; begin v_a := ({}); end $$",
        PLPGSQL + " declare v_x record; begin for v_x in {} loop null; end loop; end $$",
        PLPGSQL + " begin null; exception when others then return query {}; end $$",
        PLPGSQL.replace("()", "(variadic p_a plan_step[])") + " begin return query {}; end $$",
        "do $$ begin if exists ({}) then null; end if; end $$",
        "create view f as {}",
        "create policy f on products using (exists ({}))",
    ],
)
def test_strays_are_found_wherever_sql_stands(made: str) -> None:
    """In bodies of functions in SQL and PL/pgSQL, in views, in policies; each stray once."""
    stray = "select o.id from orders as o where o.id = 1"
    (found,) = strays(made.format(stray)).elements()
    assert found.split(": ")[1].startswith("from orders as o where o.id = 1")
    assert not strays(made.format(f"{stray} and o.warehouse_id = 2"))
