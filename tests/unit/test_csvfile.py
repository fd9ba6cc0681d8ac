"""csvfile.py: a header, records with their lines, and what isn't CSV."""

import pytest

from darkpearl import csvfile

COLUMNS = ["sku", "name", "unit_price"]


def records(text: bytes) -> list[csvfile.Record]:
    """All records of a file."""
    return list(csvfile.read(text.splitlines(keepends=True), COLUMNS)[1])


def test_a_record_has_the_line_where_it_begins() -> None:
    """Blank lines and quoted newlines count as lines; an empty field is None; a BOM is none."""
    text = b'\xef\xbb\xbfsku, name\n\nA,"One\nand more"\n\nB,\n'
    assert records(text) == [
        csvfile.Record(3, None, ["A", "One\nand more"]),
        csvfile.Record(6, None, ["B", None]),
    ]


def test_a_record_has_a_field_for_each_column() -> None:
    """One with fewer or more keeps its place with what is wrong, and stops none of the others."""
    assert records(b"sku,name\nA\nB,Two,3\nC,Three\n") == [
        csvfile.Record(2, "has 1 fields, and the header has 2", ["A", None]),
        csvfile.Record(3, "has 3 fields, and the header has 2", ["B", "Two"]),
        csvfile.Record(4, None, ["C", "Three"]),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "there is no header: the first line names the columns"),
        (b"\n\n", "there is no header: the first line names the columns"),
        (b"sku,nmae\n", "there is no column 'nmae'; the header may have sku, name, unit_price"),
        (b"A,One,1\n", "there is no column 'A', 'One', '1'; the header may have sku, name"),
        (b"sku,sku\n", "the header names a column twice"),
        (b"sku,name\nA,One\nB,\xff\n", "line 3 is not UTF-8"),
        (b"sku,name\nA,O\0ne\n", "line 2 has a NUL"),
        (b'sku,name\nA,"One\n', "line 2 can't be read as CSV: "),
    ],
    ids=["empty", "blank", "unknown", "no-header", "twice", "no-utf-8", "nul", "open-quote"],
)
def test_what_is_no_table_is_told(text: bytes, told: str) -> None:
    """A file that can't be read as a table says why, and where."""
    with pytest.raises(csvfile.CsvError) as raised:
        records(text)
    assert str(raised.value).startswith(told)
