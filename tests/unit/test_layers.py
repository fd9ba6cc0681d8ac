"""The house's rule: a module imports only lower ones, and drivers stay where they belong."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "darkpearl"
LEVELS = {
    "laws": -1,
    "config": 0,
    "errors": 0,
    "fingerprint": 0,
    "models": 0,
    "csvfile": 0,
    "feed": 0,
    "outside": 0,
    "taking": 0,
    "database": 1,
    "embedded": 1,
    "gateways": 1,
    "schema": 1,
    "telemetry": 1,
    "cells": 2,
    "connections": 2,
    "listener": 2,
    "monitor": 2,
    "paysim": 2,
    "webhooks": 3,
    "api": 3,
    "demo": 4,
    "doctor": 4,
    "imports": 4,
    "reconcile": 3,
    "restored": 3,
    "retention": 4,
    "serving": 4,
    "cli": 5,
    "__main__": 6,
}
"""Rooms and files of the package; each imports only lower ones."""
CONFINED = {
    "psycopg": {"errors", "database", "schema", "fingerprint", "listener", "api.pipeline"}
    | {"restored", "taking", "cells"},
    "psycopg_pool": {"database"},
    "litestar": {"api", "monitor", "cli", "paysim"},
    "yoyo": {"schema"},
    "uvicorn": {"connections", "serving", "paysim"},
    "jwt": {"api.tokens"},
    "jinja2": {"monitor"},
    "httpx": {"outside", "gateways", "paysim", "api.tokens", "webhooks"},
    "standardwebhooks": {"webhooks"},
    "sqlite3": {"paysim"},
    "stripe": {"gateways"},
    "opentelemetry": {"telemetry.tracing"},
    "prometheus_client": {"telemetry.metrics"},
}
"""Libraries, and the rooms or modules that may import them."""
READ_SETTINGS = {"serving", "cli", "api", "gateways.make"}
"""Everything else is handed what it needs."""

LONGEST = 70
LONG: dict[str, str] = {}
"""Functions of more lines, each with its reason. The list may only shrink."""


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name, without the package's own."""
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    names = [path.relative_to(PACKAGE).with_suffix("").parts for path in paths]
    return {
        ".".join(each for each in name if each != "__init__"): path
        for name, path in zip(names, paths, strict=True)
    }


@cache
def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Dotted names that a file imports, inside functions too; `from a import b` is a and a.b."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things live"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules of this package that a file imports."""
    return {
        name.removeprefix("darkpearl.")
        for name in imports(path, lazy=lazy)
        if name.removeprefix("darkpearl.") in modules()
    }


def room(name: str) -> str:
    """The folder or file right in the package that a module belongs to."""
    return name.partition(".")[0]


def test_every_module_has_a_level() -> None:
    """A new module gets a place in the house before it is used."""
    assert {room(name) for name in modules()} <= LEVELS.keys()


def test_a_module_imports_only_lower_ones() -> None:
    """Level by level, outside of its own folder."""
    wrong = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in ours(path)
        if room(other) != room(name) and LEVELS[room(other)] >= LEVELS[room(name)]
    ]
    assert wrong == []


def test_there_are_no_cycles() -> None:
    """Inside of a folder neither, when modules are loaded."""
    graph = {name: ours(path, lazy=False) - {name} for name, path in modules().items()}
    TopologicalSorter(graph).prepare()


def test_drivers_stay_in_their_modules() -> None:
    """Another database driver or HTTP framework would touch these modules alone."""
    wrong = [
        f"{name} imports {library}"
        for name, path in modules().items()
        for library, places in CONFINED.items()
        if library in {room(each) for each in imports(path)} and not {name, room(name)} & places
    ]
    assert wrong == []


def test_what_a_part_needs_is_handed_to_it() -> None:
    """The settings are read where parts are put together, and by no listener or gateway."""
    readers = {
        name for name, path in modules().items() if "darkpearl.config.Settings" in imports(path)
    }
    assert {name for name in readers if not {name, room(name)} & READ_SETTINGS} == set()


def functions() -> dict[str, int]:
    """Lines of every function, by its dotted name; those inside of others count as theirs too."""
    return {
        f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_no_function_is_too_long() -> None:
    """A function over 70 lines has a reason in LONG, and leaves it when it is shorter."""
    assert {name for name, lines in functions().items() if lines > LONGEST} == LONG.keys()


def test_no_file_is_too_long() -> None:
    """A file over 400 lines wants a second room."""
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
