"""Which tests come by what: a plugin of pytest that writes it down, and what is made of it.

For each test how long it took, which functions its database has called, and which lines of
Python it ran; of a test with many parameters the first two cases stand for the others. A
function that PostgreSQL inlines is in no statistics: it counts as called where one that names it
is.
"""

import ast
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import coverage
import psycopg
import pytest
from mutant import Mutant

FUNCTION = re.compile(
    r"^create (?:or replace )?(?:function|view) (\w+)(.*?)(?=^create |\Z)", re.DOTALL | re.MULTILINE
)
PATIENCE_SECONDS = 2.0
SET_UP_SECONDS = 0.1


class Recorder:
    """The plugin. Tests that fail are not written down."""

    def __init__(self, python: list[str]) -> None:
        self.coverage = coverage.Coverage(include=python, data_file=None)
        self.coverage.set_option("run:disable_warnings", ["no-data-collected"])
        self.tests: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()
        self.url = ""
        self.seconds = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """One test, with its set-up and what comes after."""
        self.coverage.switch_context(item.nodeid)
        found = yield
        self.tests[item.nodeid] = {
            "seconds": round(self.seconds + SET_UP_SECONDS, 3),
            "functions": self._functions(),
            "lines": {},
        }
        return found

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """The address of the test's database is gone after this."""
        self.url = getattr(item, "funcargs", {}).get("database_url", "")
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes note of a failure, and of the time without what a run begins and ends with."""
        if report.when == "call":
            self.seconds = report.duration
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def _functions(self) -> list[str] | None:
        """What the database of a test has called, once its sessions have said so.

        None for the last test of a run, whose database is gone.
        """
        if not self.url:
            return []
        try:
            connection = psycopg.connect(self.url, autocommit=True)
        except psycopg.OperationalError:
            return None
        with connection:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                others = connection.execute(
                    "select from pg_stat_activity where datname = current_database()"
                    " and pid <> pg_backend_pid() and backend_type = 'client backend'"
                )
                if not others.rowcount:
                    break
            called = connection.execute(
                "select distinct funcname from pg_stat_user_functions order by 1"
            )
            return [name for (name,) in called]

    def save(self, path: Path, root: Path) -> None:
        """Add to what is known."""
        data = self.coverage.get_data()
        for file in data.measured_files():
            for line, names in data.contexts_by_lineno(file).items():
                for name in names:
                    if name in self.tests:
                        lines = self.tests[name]["lines"]
                        lines.setdefault(str(Path(file).relative_to(root)), []).append(line)
        known = json.loads(path.read_text()) if path.exists() else {}
        known |= {name: each for name, each in self.tests.items() if name not in self.failed}
        for name, each in known.items():
            if each["functions"] is None:  # it is like the others of its file
                file = name.split("::")[0]
                others = (t["functions"] for n, t in known.items() if n.startswith(f"{file}::"))
                each["functions"] = sorted({f for functions in others for f in functions or ()})
        path.write_text(json.dumps(known))


class Map:
    """What is known of the tests that there are."""

    def __init__(self, path: Path, root: Path, there: set[str]) -> None:
        known = json.loads(path.read_text()) if path.exists() else {}
        cases: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for name, each in known.items():
            cases[name.split("[")[0]].append(each)
        self.tests = {
            name: known.get(name) or cases[name.split("[")[0]][-1]
            for name in there
            if name.split("[")[0] in cases
        }
        self.root = root
        self.noticed: dict[str, set[str]] = defaultdict(set)

    @cached_property
    def bodies(self) -> dict[str, set[str]]:
        """The words of each function and view."""
        return {
            name: set(re.findall(r"\w+", body))
            for file in sorted((self.root / "sql").glob("*/*.sql"))
            for name, body in FUNCTION.findall(file.read_text())
        }

    @cached_property
    def by_function(self) -> dict[str, set[str]]:
        """The tests that call each function."""
        found = defaultdict(set)
        for test, each in self.tests.items():
            for name in each["functions"]:
                found[name].add(test)
        return found

    @cached_property
    def sources(self) -> dict[str, str]:
        """What each test function says, by file and name."""
        found = {}
        for path in {name.split("::")[0] for name in self.tests}:
            source = (self.root / path).read_text()
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    said = ast.get_source_segment(source, node) or ""
                    found[f"{path}::{node.name}"] = said
        return found

    def said(self, test: str) -> str:
        """What a test says, its parameters too."""
        return f"{test} {self.sources.get(test.split('[', maxsplit=1)[0], '')}"

    def users(self, name: str, seen: set[str]) -> set[str]:
        """The tests that come by a function, view or table."""
        seen.add(name)
        found = {test for test in self.tests if re.search(rf"\b{name}\b", self.said(test))}
        if name in self.by_function:
            return found | self.by_function[name]
        for user, words in self.bodies.items():
            if name in words and user not in seen:
                found |= self.users(user, seen)
        return found

    def tests_of(self, mutant: Mutant, tables: set[str]) -> list[str]:
        """The tests that may notice a mutant, those first that are likely to, and soon.

        tables: what the mutant is about, besides what it is called.
        """
        if mutant.path.endswith(".py"):
            last = mutant.line + mutant.edit.put.count("\n") + mutant.before.count("\n")
            lines = set(range(mutant.line, last + 1))
            near = {
                test: set(each["lines"][mutant.path])
                for test, each in self.tests.items()
                if mutant.path in each["lines"]
            }
            found = {test for test, run in near.items() if lines & run}
            name = Path(mutant.path).stem
            if not found:  # an import runs it, or a process of its own
                found = set(near) | {test for test in self.tests if name in test.split("::")[0]}
        else:
            name = mutant.edit.where.strip('"')
            found = set().union(*(self.users(each, set()) for each in {name, *tables}))
        word = re.compile(rf"\b({'|'.join(map(re.escape, {name, *tables}))})\b")
        words = re.split(r"[\W\d_]+", f"{Path(mutant.path).stem} {mutant.edit.where}".lower())
        topic = {each.rstrip("s") for each in words if len(each) > 3}

        def rank(test: str) -> tuple[int, int, int, float]:
            return (
                -len(self.noticed[test] & {mutant.edit.where, mutant.path}),
                not word.search(self.said(test)),
                not any(each.rstrip("s") in test.split("::", maxsplit=1)[0] for each in topic),
                self.tests[test]["seconds"],
            )

        return sorted(found, key=rank)
