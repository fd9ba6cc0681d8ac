"""`python tests/mutants`: takes guards away one at a time, and sees whether the suite notices.

All edits that the rules of sql_mutants.py and python_mutants.py find are enumerated; a seed
chooses some. Each is made in a private copy of the sources, on a server that goes on running,
and the tests that come by it run until the first that fails. What goes unnoticed must stand in
docs/mutants.md, with its reason.
"""

import fnmatch
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from map import Map, Recorder
from mutant import Mutant, named
from python_mutants import Edits
from sql_mutants import Statements

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "mutants"
ACCEPTED = ROOT / "docs" / "mutants.md"
SQL = ["sql/migrations/*.sql", "sql/routines/*.sql"]
PYTHON = ["darkpearl/listener/*.py", "darkpearl/gateways/*.py", "darkpearl/reconcile.py"]
APART = [
    # They compare texts, and would notice any edit whatever it does.
    "tests/sql/test_drift.py",
    "tests/sql/test_documented.py",
    "tests/unit/test_layers.py",
    "tests/unit/test_sql_files.py",
    "tests/unit/test_statements.py",
    "*compiled_calls_are*",
    # They are about the start of a machine and take long.
    "tests/saga/test_readme.py",
    "tests/saga/test_up.py",
    "tests/unit/test_bench.py",
    "tests/unit/test_compose.py",
    "tests/unit/test_embedded.py",
]
OPTIONS = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "--tb=line"]


class Chosen:
    """A plugin: runs some tests, in the order given."""

    def __init__(self, order: list[str]) -> None:
        self.order = {name: n for n, name in enumerate(order)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Only those."""
        items[:] = [item for item in items if item.nodeid in self.order]
        items.sort(key=lambda item: self.order[item.nodeid])


class Noticed:
    """A plugin: keeps the first test that fails."""

    found: tuple[str, str] | None = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file of tests can't be read any more."""
        if report.failed and not self.found:
            self.found = ("noticed", report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The database can't be built from what was mutated, or a test fails."""
        if report.failed and not self.found:
            told = str(report.longrepr)
            unborn = report.when == "setup" and re.search(r"SchemaError: (?!.*busy)", told)
            self.found = ("unborn" if unborn else "noticed", report.nodeid)


class Collected:
    """A plugin: the tests that there are, without those that are left out."""

    names: list[str]

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = patterns

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Takes their names."""
        names = [item.nodeid for item in session.items]
        self.names = [
            each
            for each in names
            if any(fnmatch.fnmatch(each, f"{pattern}*") for pattern in self.patterns)
            and not any(fnmatch.fnmatch(each, f"{out}*") for out in APART)
        ]


def functions(tests: list[str]) -> list[str]:
    """The test functions of some tests: not every parameter can be named to pytest."""
    return list(dict.fromkeys(each.split("[")[0] for each in tests))


def quietly(arguments: list[str], *plugins: object) -> int:
    """pytest in this process; what it says goes into a file."""
    with (WORK / "pytest.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        return int(pytest.main(arguments, plugins))


@contextmanager
def workshop() -> Iterator[tuple[Path, str]]:
    """A copy of the sources to change, which Python and its children import; and a server."""
    WORK.mkdir(parents=True, exist_ok=True)
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(
            ROOT,
            copy,
            symlinks=True,
            ignore=shutil.ignore_patterns("build", ".git", "__pycache__", ".*_cache"),
        )
        Path(folder).chmod(0o755)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        os.chdir(copy)
        from darkpearl import embedded  # noqa: PLC0415  # that of the copy

        with embedded.temporary() as server:
            os.environ["DARKPEARL_TEST_DATABASE_URL"] = server.url
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("alter system set track_functions = 'all'")
                connection.execute("select pg_reload_conf()")
            yield copy, server.url


def forget(copy: Path) -> None:
    """Have what the copy holds imported anew."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{copy}/"):
            del sys.modules[name]


def sweep(url: str) -> None:
    """Drop what a run that was ended has left."""
    with psycopg.connect(url, autocommit=True) as connection:
        left = connection.execute(
            "select datname from pg_database where datname like 'darkpearl\\_%'"
        )
        for (name,) in left.fetchall():
            connection.execute(f'alter database "{name}" is_template false'.encode())
            connection.execute(f'drop database "{name}" with (force)'.encode())


def child(copy: Path, tests: list[str], *, anew: bool, answer: Any) -> None:
    """One run of some tests."""
    os.setsid()
    if anew:
        forget(copy)
    plugin = Noticed()
    code = quietly([*OPTIONS, *functions(tests)], plugin, Chosen(tests))
    if plugin.found:
        answer.put(plugin.found)
    elif code == pytest.ExitCode.INTERRUPTED:
        answer.put(("interrupted", ""))
    elif code in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        answer.put(("unnoticed", ""))
    else:
        answer.put(("noticed", f"pytest: {code}"))


def run(copy: Path, url: str, tests: list[str], seconds: float, *, anew: bool) -> tuple[str, str]:
    """Run some tests in a process of their own until one fails or the time is over.

    anew: Python was changed, so nothing that was imported before counts.
    """
    sweep(url)
    fork = multiprocessing.get_context("fork")
    answer = fork.SimpleQueue()
    options = {"anew": anew, "answer": answer}
    process = fork.Process(target=child, args=(copy, tests), kwargs=options)
    process.start()
    try:
        process.join(seconds)
        ended = process.exitcode is not None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    if not ended:
        return "noticed", "out of time"
    found: tuple[str, str] = ("noticed", "no end") if answer.empty() else answer.get()
    if found[0] == "interrupted":
        raise KeyboardInterrupt
    return found


def record(copy: Path, url: str, tests: list[str]) -> None:
    """Write down what tests come by: file by file, so that what is known is known."""

    def recording(some: list[str]) -> None:
        forget(copy)
        plugin = Recorder([str(copy / each) for each in PYTHON])
        plugin.coverage.start()
        quietly(["-q", "-p", "no:cacheprovider", *functions(some)], plugin, Chosen(some))
        plugin.coverage.stop()
        plugin.save(WORK / "map.json", copy)
        print(f"{len(plugin.tests)} recorded, without {sorted(plugin.failed)}", flush=True)

    for file in dict.fromkeys(each.split("::")[0] for each in tests):
        print(file, end=": ", flush=True)
        sweep(url)
        cases: dict[str, list[str]] = {}
        for test in tests:
            if test.split("::")[0] == file:
                cases.setdefault(test.split("[")[0], []).append(test)
        some = [each for group in cases.values() for each in group[:2]]
        process = multiprocessing.get_context("fork").Process(
            target=recording, args=(some,), daemon=True
        )
        process.start()
        process.join()


def all_mutants() -> list[Mutant]:
    """Every edit that the rules allow."""
    found: list[Mutant] = []
    for patterns, edits in (
        (SQL, lambda text: Statements(text).edits()),
        (PYTHON, lambda text: Edits(text).found),
    ):
        for path in sorted(each for pattern in patterns for each in ROOT.glob(pattern)):
            text = path.read_text()
            found += named(path.relative_to(ROOT), text, edits(text))
    return found


def sample(mutants: list[Mutant], options: Namespace) -> list[Mutant]:
    """As many as are wanted. An edit elsewhere leaves the others chosen."""

    def lot(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{options.seed} {mutant.name}".encode()).digest()

    chosen = [each for each in mutants if fnmatch.fnmatch(each.name, f"*{options.only}*")]
    return sorted(chosen, key=lot)


def about(mutant: Mutant, source: str) -> set[str]:
    """The table and the function of a trigger, policy, index or constraint; those of a domain."""
    if not mutant.path.endswith(".sql"):
        return set()
    text = source[: mutant.edit.end]
    statement = source[mutant.edit.start : mutant.edit.end]
    names = set(re.findall(r"\bon (\w+)|execute function (\w+)", statement))
    if "/migrations/" in mutant.path:
        tables = re.findall(
            r"^create (?:table|domain) (\w+)|^create .*index .* on (\w+)", text, re.MULTILINE
        )
        names |= set(tables[-1:])
        # What a domain or the function of a check refuses, it refuses to the tables that use it.
        used = rf"^create table (\w+) \((?:(?!^\)).)*\b{re.escape(mutant.edit.where)}\b"
        names |= set(re.findall(used, source, re.MULTILINE | re.DOTALL))
    if mutant.edit.where.startswith('"') or mutant.edit.where == "policies":
        names |= set(re.findall(r"^create policy .* on (\w+)", text, re.MULTILINE)[-1:])
        if mutant.edit.where == "policies":
            names = {("order_items", "payments")}
    return {word for pair in names for word in ([pair] if isinstance(pair, str) else pair) if word}


def accepted() -> dict[str, str]:
    """The survivors that are known, with their reasons, from the page about them."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", ACCEPTED.read_text(), re.MULTILINE)
    return dict(rows)


def report(results: dict[str, dict[str, Any]], wanted: list[Mutant], number: int) -> int:
    """Say what came out; the number of survivors that nobody has given a reason for."""
    known = accepted()
    done = [results[each.name] for each in wanted if each.name in results]
    born = [each for each in done if each["result"] != "unborn"][:number]
    counts = Counter(each["result"] for each in born)
    fresh = [each for each in born if each["result"] == "unnoticed" and each["name"] not in known]
    for each in fresh:
        print(f"\n{each['name']}  {each['path']}:{each['line']}\n{each['before']}\n{each['after']}")
    share = counts["noticed"] / max(1, len(born))
    print(
        f"\n{len(born)} mutants: {counts['noticed']} noticed ({share:.1%}),"
        f" {counts['unnoticed']} not, {len(fresh)} of them without a reason;"
        f" {len(done) - len(born)} more the database itself refused"
    )
    return len(fresh)


def main() -> int:
    """See the docstring of the module."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=300, help="how many, besides those refused")
    parser.add_argument("--seed", default="1", help="chooses which")
    parser.add_argument("--only", default="", help="part of a name: file/function/rule")
    parser.add_argument("--budget", type=float, default=30, help="seconds of tests for each")
    parser.add_argument(
        "--again", action="store_true", help="those that went unnoticed for no reason, again"
    )
    parser.add_argument(
        "--tests", nargs="+", default=["tests"], help="patterns of the tests that may notice"
    )
    parser.add_argument("--list", action="store_true", help="only say which")
    options = parser.parse_args()
    wanted = sample(all_mutants(), options)
    if options.list:
        for each in wanted[: options.number]:
            print(f"{each.name}  {each.path}:{each.line}\n{each.before}\n{each.after}\n")
        return 0
    results_file = WORK / f"results-{options.seed}.jsonl"
    with workshop() as (copy, url):
        collected = Collected(options.tests)
        quietly(["--collect-only", "-q"], collected)
        table = WORK / "map.json"
        unknown = sorted(set(collected.names) - Map(table, copy, set(collected.names)).tests.keys())
        if unknown:
            record(copy, url, unknown)
        tests = Map(table, copy, set(collected.names))
        known = accepted()
        results: dict[str, dict[str, Any]] = {}
        for line in results_file.read_text().splitlines() if results_file.exists() else ():
            one = json.loads(line)
            results[one["name"]] = one
        born = 0
        with results_file.open("a") as book:
            for mutant in wanted:
                if born == options.number:
                    break
                result = results.get(mutant.name)
                unexplained = mutant.name not in known
                again = options.again and unexplained and result and result["result"] == "unnoticed"
                if result is None or again:
                    result = results[mutant.name] = tried(mutant, tests, copy, url, options.budget)
                    book.write(json.dumps(result) + "\n")
                    book.flush()
                if result["result"] == "noticed":
                    tests.noticed[result["by"]] |= {mutant.edit.where, mutant.path}
                born += result["result"] != "unborn"
    return 1 if report(results, wanted, options.number) else 0


def write(file: Path, text: str) -> None:
    """Write a file; compiled Python of what it was before doesn't count, since it is older."""
    before = file.stat().st_mtime
    file.write_text(text)
    os.utime(file, (before + 2, before + 2))


def tried(mutant: Mutant, tests: Map, copy: Path, url: str, budget: float) -> dict[str, Any]:
    """Make a mutant, run what may notice it, and put the file back."""
    file = copy / mutant.path
    source = file.read_text()
    chosen: list[str] = []
    seconds = 0.0
    for name in tests.tests_of(mutant, about(mutant, source)):
        needed = tests.tests[name]["seconds"]
        if not chosen or seconds + needed <= budget:
            chosen.append(name)
            seconds += needed
    begun = time.monotonic()
    write(file, mutant.text(source))
    try:
        result, by = ("unnoticed", "")
        if chosen:
            anew = mutant.path.endswith(".py")
            result, by = run(copy, url, chosen, 3 * budget + 60, anew=anew)
    finally:
        write(file, source)
    took = round(time.monotonic() - begun, 1)
    print(f"{result:9} {took:6} s  {len(chosen):4}  {mutant.name}  {by}", flush=True)
    return {
        "name": mutant.name, "path": mutant.path, "line": mutant.line, "result": result, "by": by,
        "seconds": took, "tests": len(chosen), "before": mutant.before, "after": mutant.after,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
