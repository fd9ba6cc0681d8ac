"""CSV as it comes: a header that names columns, and records with the lines where they begin.

Only the form is looked at here. What a field may hold is the database's to say.
"""

import csv
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_NAMED = 10


class CsvError(ValueError):
    """A file that can't be read as what it is to be."""


class Record(NamedTuple):
    """A record of a file.

    Attributes:
        line: where it begins.
        problem: what is wrong with its form; None: it has a field for each column.
        fields: its fields in the order of the header; an empty one is None.
    """

    line: int
    problem: str | None
    fields: list[str | None]


def read(lines: Iterable[bytes], columns: list[str]) -> tuple[list[str], Iterator[Record]]:
    """The columns that a file has, and its records.

    Args:
        lines: the file, cut behind each newline.
        columns: those that it may have.

    Raises:
        CsvError: it isn't UTF-8, has no header, has a column that there isn't or one twice;
            while records are read also where a quote has no end.
    """
    reader = csv.reader(_decoded(lines), strict=True)
    header = next(filter(None, _guarded(reader)), None)
    if header is None:
        raise CsvError("there is no header: the first line names the columns")
    header = [each.strip() for each in header]
    unknown = [each for each in header if each not in columns]
    if unknown:
        named = ", ".join(repr(each[: _NAMED * 10]) for each in unknown[:_NAMED])
        raise CsvError(f"there is no column {named}; the header may have {', '.join(columns)}")
    if len(set(header)) < len(header):
        raise CsvError("the header names a column twice")
    return header, _records(reader, len(header))


def _records(reader: Iterator[list[str]], width: int) -> Iterator[Record]:
    begins = reader.line_num + 1  # type: ignore[attr-defined]
    for row in _guarded(reader):
        if row:
            problem = None
            if len(row) != width:
                problem = f"has {len(row)} fields, and the header has {width}"
            fields = [each or None for each in row[:width]]
            yield Record(begins, problem, fields + [None] * (width - len(fields)))
        begins = reader.line_num + 1  # type: ignore[attr-defined]


def _guarded(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        at = reader.line_num  # type: ignore[attr-defined]
        raise CsvError(f"line {at} can't be read as CSV: {error}") from None


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise CsvError(f"line {number} is not UTF-8") from None
        if "\0" in text:
            raise CsvError(f"line {number} has a NUL")
        yield text
