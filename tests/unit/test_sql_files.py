"""sql/: a book that is read from front to back, and tells what each piece is for."""

import re
from pathlib import Path

import pytest

SQL = Path(__file__).parents[2] / "sql"
ROUTINES = sorted((SQL / "routines").glob("*.sql"))
FILES = [*sorted((SQL / "schema").glob("*.sql")), *ROUTINES]
NAMES = [f"{file.parent.name}/{file.name}" for file in FILES]

LONGEST = 70
"""Lines of a function, from `create or replace function` to the end of its body."""

LONG = {
    "apply_movements": "shelves and ledger in one statement; parts would be calls on the hot path",
    "reconcile_payments": "one comparison, a branch for each way in which two books can differ",
    "reserve_scarce_stock": "one sweep over the lines that settles who fits; not taken apart yet",
}
"""Functions that are longer all the same, each with its reason. The list may only shrink."""

EARLY: dict[tuple[str, str], str] = {}
"""Uses of what a later file defines, each with its reason. The list may only shrink."""

NO_CODE = re.compile(
    r"""
    --[^\n]* | /\*.*?\*/                 # comments
    | '(?:[^']|'')*' | "[^"]*"           # literals, names that are sentences
    | \$(\w+)\$.*?\$\1\$                 # templates; bodies stand between bare $$
    """,
    re.DOTALL | re.VERBOSE,
)
DEFINED = re.compile(r"^create or replace function (\w+)", re.MULTILINE)
FOLLOWED_BY_PARENTHESIS = re.compile(r"(\w+)\s*\(")


def code(file: Path) -> str:
    """What a file says to the server, without comments, literals and templates.

    Functions that a string names, in a plan or a template, are looked up when they are called.
    """
    return NO_CODE.sub(" ", file.read_text())


def test_code_is_what_is_left_of_a_file(tmp_path: Path) -> None:
    """Comments, literals and templates are no uses; calls, triggers and bodies are."""
    file = tmp_path / "a.sql"
    file.write_text(
        "-- who doesn't call one(),\n"
        "/* nor two() */ select 'three(), it''s', $code$ four() $code$;\n"
        'create policy "five () isn\'t" on t; do $$ begin perform six(1); end $$;\n'
        "create trigger t after insert on t execute function seven();"
    )
    assert FOLLOWED_BY_PARENTHESIS.findall(code(file)) == ["six", "seven"]


def test_functions_are_short() -> None:
    """A function over 70 lines has a reason; who shortens one takes it off the list."""
    pattern = r"^create or replace function (\w+).*?(?=\s*^comment on function \1\()"
    lengths = {
        found[1]: found[0].count("\n") + 1
        for file in ROUTINES
        for found in re.finditer(pattern, file.read_text(), re.DOTALL | re.MULTILINE)
    }
    assert len(lengths) > 100
    assert {name for name, lines in lengths.items() if lines > LONGEST} == LONG.keys()


def test_a_file_uses_only_what_stands_before_it() -> None:
    """The numbers of the files are the order of their dependencies."""
    home = {name: file.stem for file in ROUTINES for name in DEFINED.findall(file.read_text())}
    early = {
        (file.stem, name)
        for file in ROUTINES
        for name in FOLLOWED_BY_PARENTHESIS.findall(code(file))
        if home.get(name, "") > file.stem
    }
    assert early == EARLY.keys()


@pytest.mark.parametrize("file", ROUTINES, ids=lambda file: file.stem)
def test_every_function_has_a_header_and_a_comment(file: Path) -> None:
    """Above a function stands why it is there; psql tells what it is for, in one comment."""
    text = file.read_text()
    defined = sorted(DEFINED.findall(text))
    headed = re.findall(r"^--.*\ncreate or replace function (\w+)", text, re.MULTILINE)
    assert sorted(headed) == defined
    commented = re.findall(r"^comment on function (\w+)\(", text, re.MULTILINE)
    assert sorted(commented) == defined


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_file_opens_with_its_story(file: Path) -> None:
    """The first lines of a file say in prose what it is about."""
    story = re.match(r"(--.*\n)+", file.read_text())
    assert story
    assert len(story[0].split()) > 10


def test_the_front_page_names_every_file() -> None:
    """sql/README.md has one line for each file, in the order in which they are applied."""
    page = (SQL / "README.md").read_text()
    assert re.findall(r"^\| `((?:schema|routines)/\w+\.sql)` \| \w", page, re.MULTILINE) == NAMES
    assert [name for name in NAMES if page.count(name) != 1] == []
