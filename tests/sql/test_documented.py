"""Everything says what it is to who reads psql, and names read like what they stand for."""

import re
from pathlib import Path

import pytest
from shop import Shop

from darkpearl import schema
from darkpearl.laws import LAWS

TEXTS = {each.stem: each.read_text() for each in schema.files("routines")}
FUNCTION = re.compile(r"^create (?:or replace )?function (\w+)", re.MULTILINE)


async def test_every_function_has_a_comment(shop: Shop) -> None:
    """Who lists the functions in psql reads of each what it is for."""
    silent = await shop.values(
        "select oid::regprocedure::text from pg_proc"
        " where pronamespace = 'darkpearl'::regnamespace"
        " and coalesce(obj_description(oid, 'pg_proc'), '') !~ '\\w'"
    )
    assert silent == []


async def test_every_table_and_view_has_a_comment(shop: Shop) -> None:
    """Who lists tables and views in psql reads of each what it is for."""
    silent = await shop.values(
        "select relname from pg_class where relnamespace = 'darkpearl'::regnamespace"
        " and relkind in ('r', 'p', 'v') and not relispartition"
        " and coalesce(obj_description(oid, 'pg_class'), '') !~ '\\w'"
    )
    assert silent == []


@pytest.mark.parametrize("file", schema.files("routines"), ids=lambda file: file.stem)
def test_what_is_raised_says_a_way_out(file: Path) -> None:
    """Every error of our own is raised with DETAIL and HINT, and listed where the class is told."""
    known = set(re.findall(r"^--   (DP\d{3})  ", TEXTS["10_base"], re.MULTILINE))
    for statement in re.findall(r"raise exception.*?;\n", file.read_text(), re.DOTALL):
        assert "detail = " in statement, statement
        assert "hint = " in statement, statement
    assert set(re.findall(r"'(DP\d{3})'", file.read_text())) <= known


async def test_a_name_is_one_function(shop: Shop) -> None:
    """There are no overloads: a name stands for one list of arguments."""
    overloaded = await shop.values(
        "select proname from pg_proc where pronamespace = 'darkpearl'::regnamespace"
        " group by proname having count(*) > 1"
    )
    assert overloaded == []


async def test_every_function_is_in_the_files(shop: Shop) -> None:
    """What the database has is what the files define, and nothing is defined twice."""
    routines = [name for text in TEXTS.values() for name in FUNCTION.findall(text)]
    assert len(routines) == len(set(routines))
    there = await shop.values(
        "select proname from pg_proc where pronamespace = 'darkpearl'::regnamespace"
    )
    assert set(there) == {
        *routines,
        "amounts_add_up",
        "clock",
        "is_postal_address",
        "is_visible_throughout",
        "is_visible",
        "minor_units",
        "new_id",
        "search_words",
        "this_cell",
        "words_of",
    }


async def test_arguments_cant_be_taken_for_columns(shop: Shop) -> None:
    """Every argument is called p_something: an SQL function compares a column with itself else."""
    mistakable = await shop.values(
        "select p.proname || '.' || a.name from pg_proc as p,"
        " unnest(p.proargnames, p.proargmodes) as a (name, mode)"
        " where p.pronamespace = 'darkpearl'::regnamespace"
        " and coalesce(a.mode, 'i') in ('i', 'b') and a.name not like 'p\\_%'"
    )
    assert mistakable == []


async def test_indexes_are_named_for_their_purpose(shop: Shop) -> None:
    """An index that no constraint owns is called <table>_<purpose>_idx."""
    odd = await shop.values(
        "select i.relname from pg_index as x"
        " inner join pg_class as i on i.oid = x.indexrelid"
        " inner join pg_class as t on t.oid = x.indrelid"
        " where t.relnamespace = 'darkpearl'::regnamespace and not t.relispartition"
        " and not exists (select from pg_constraint as c where c.conindid = i.oid)"
        " and i.relname !~ ('^' || t.relname || '_\\w+_idx$')"
    )
    assert odd == []


async def test_constraints_read_like_laws(shop: Shop) -> None:
    """A check or a unique constraint is named after its rule, not after its columns."""
    nameless = await shop.values(
        "select conname from pg_constraint where connamespace = 'darkpearl'::regnamespace"
        " and contype in ('c', 'u', 'x') and conname ~ '_(check|key|excl)\\d*$'"
    )
    assert nameless == []


async def test_policies_are_sentences(shop: Shop) -> None:
    """A policy's name says in words who may do what."""
    terse = await shop.values(
        "select policyname from pg_policies where schemaname = 'darkpearl'"
        " and policyname !~ '\\w+ \\w+'"
    )
    assert terse == []
    assert await shop.value("select count(*) > 10 from pg_policies where schemaname = 'darkpearl'")


async def test_laws_are_told_in_words(shop: Shop) -> None:
    """Who breaks a rule of what users write reads what is allowed, not a name alone."""
    written = (
        "{products,warehouses,inventory,stock_movements,orders,order_items,order_adjustments"
        ",order_particulars"
        ",refunds}"
    )
    checked = await shop.values(
        "select conname from pg_constraint where contype = 'c' and conname !~ '_not_null$'"
        " and (conrelid = any(%s::text[]::regclass[]) or contypid in"
        " (select oid from pg_type where typnamespace = 'darkpearl'::regnamespace))",
        written,
    )
    assert set(checked) - set(LAWS) == set()
    there = await shop.values(
        "select conname from pg_constraint where connamespace = 'darkpearl'::regnamespace"
    )
    assert set(LAWS) - set(there) == set()


def test_laws_are_on_the_page() -> None:
    """docs/sql.md has each law in the same words, for who has its name from psql."""
    page = (schema.folder().parent / "docs" / "sql.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page.split("## Laws")[1], re.MULTILINE))
    told = {name: said for name, (said, _) in LAWS.items() if not name.endswith("_pkey")}
    assert listed == told
