"""schema/20_catalog.sql: what a SKU, a code and a name may be."""

import unicodedata

import pytest
from shop import Shop

BLANK = [
    "",
    " ",
    "\t\n",
    "\u00a0",
    "\u200b",
    "\u200b\u200d\ufeff",
    "\u2060 \u00ad",
    "\u3164",
    "\u2800",
]
COLUMNS = [
    ("products", "sku"),
    ("products", "name"),
    ("warehouses", "code"),
    ("warehouses", "name"),
]


@pytest.mark.parametrize(("table", "column"), COLUMNS)
async def test_what_nobody_sees_is_blank(shop: Shop, table: str, column: str) -> None:
    """White space, zero-width and other invisible characters make no SKU, code or name."""
    other = {"products": ("sku", "name"), "warehouses": ("code", "name")}[table]
    query = f"insert into {table} ({', '.join(other)}) values (%s, %s)"
    for blank in BLANK:
        with shop.refused("23514") as refusal:
            await shop.run(query, *(blank if each == column else "seen" for each in other))
        assert f"{table}_{column}_is_short_and_not_blank" in refusal.message
    await shop.run(query, *("\U0001f41a" if each == column else "seen" for each in other))


@pytest.mark.parametrize(("table", "column"), [("products", "sku"), ("warehouses", "code")])
async def test_what_looks_alike_is_the_same(shop: Shop, table: str, column: str) -> None:
    """A SKU or a code has no character that can't be seen, nor spaces that can't be counted."""
    query = f"insert into {table} ({column}, name) values (%s, 'n\u200cm')"
    for hidden in ("A\u200bB", "A\u00adB", "A\u00a0B", "A\tB", " AB", "AB ", "A  B", "\u200dA"):
        with shop.refused("23514") as refusal:
            await shop.run(query, hidden)
        assert f"{table}_{column}_is_visible_throughout" in refusal.message
    for plain in ("A B", "\u00c4-14/\u6f22", "\U0001f41a"):
        await shop.run(query, plain)


@pytest.mark.parametrize("column", ["sku", "name"])
async def test_twins_of_unicode_are_one(shop: Shop, column: str) -> None:
    """A text is stored in its composed form or not at all, so what looks alike is the same."""
    composed = unicodedata.normalize("NFC", "P\u00e9rola")
    twin = unicodedata.normalize("NFD", composed)
    assert composed != twin
    await shop.product(**{column: composed})
    with shop.refused("23514") as refusal:
        await shop.product(**{column: twin})
    assert f"products_{column}_is_normalized_nfc" in refusal.message
    if column == "sku":
        with shop.refused("23505"):
            await shop.product(sku=composed)
