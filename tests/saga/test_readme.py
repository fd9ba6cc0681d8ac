"""The README and the docs are run: what they show happens, and what they name is there.

A fenced block that begins with `-- as <role>` is run by psql under that login; a bash block is run
by bash. What the `text` block after it shows has to come out, in that order; `…` stands for
anything, and lines may be left out.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from pages import ROOT, blocks, under
from psycopg import sql
from psycopg.conninfo import make_conninfo

from darkpearl.api.app import create_app
from darkpearl.cli import main as cli
from darkpearl.config import Settings, variables
from darkpearl.embedded import wheel
from darkpearl.errors import PROBLEMS

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
PATIENCE_SECONDS = 60
ROLES = ["anon", "authenticated", "service_role", "darkpearl_app", "darkpearl_listener",
         "darkpearl_reader"]  # fmt: skip
NEW = {"sql/routines/65_restocking.sql", "sql/routines/65_labels.sql"}
"""Files that the pages tell their readers to make."""
STAFF = "darkpearl_readme_staff"
"""A login that is a member of service_role, which can't log in itself."""


def prose(name: str) -> str:
    """A document without its fenced blocks."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def table(name: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    rest = (ROOT / name).read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1].split("\n\n")
    rows = next(part for part in rest if part.lstrip().startswith("|")).strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def ticked(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def shows(printed: str, shown: str) -> bool:
    """Whether the lines of `shown` come out in their order."""
    lines = []
    for line in shown.strip().splitlines():
        parts = [re.escape("".join(part.split())) for part in line.split("…")]
        lines.append(".*?".join(parts))
    return re.search(".*?".join(lines), "".join(printed.split())) is not None


@dataclass(frozen=True)
class System:
    """A running `darkpearl up`: where it is, and what it has printed."""

    url: str
    api: str
    printed: str
    home: str

    def login(self, role: str) -> str:
        """The address of the database for a role."""
        user = STAFF if role == "service_role" else role
        return make_conninfo(self.url, user=user, password="secret")

    def rest(self) -> None:
        """Wait until every saga has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with psycopg.connect(self.url, autocommit=True) as connection:
            busy = "select exists (select from darkpearl.sagas where ready_at is not null)"
            while (connection.execute(busy).fetchone() or [None])[0]:
                assert time.monotonic() < deadline
                time.sleep(0.01)


@pytest.fixture(scope="module")
def system(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Schema, demo data, API and a listener whose gateway approves, on a database of its own."""
    database = f"darkpearl_readme_{os.getpid()}"
    name = sql.Identifier(database)
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} template template0").format(name))
    url = make_conninfo(server_url, dbname=database)
    given = {key: each for key, each in os.environ.items() if not key.startswith("DARKPEARL")}
    parts = psycopg.conninfo.conninfo_to_dict(url)
    address = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(
        **{"password": "", "port": 5432, **parts}
    )
    home = str(tmp_path_factory.mktemp("home"))
    process = subprocess.Popen(
        [sys.executable, "-m", "darkpearl", "up"],
        env={
            **given, "DARKPEARL_DATABASE_URL": address, "DARKPEARL_PORT": "0",
            "DARKPEARL_HOME": home, "DARKPEARL_MOCK_APPROVAL_RATE": "1",
        },
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        printed = ""
        while "Ctrl-C stops" not in printed:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(f"drop role if exists {STAFF}")
            admin.execute(f"create role {STAFF} login in role service_role")
            admin.execute(
                sql.SQL("alter role {} in database {} set search_path = darkpearl").format(
                    sql.Identifier(STAFF), name
                )
            )
            for role in (STAFF, "darkpearl_app", "darkpearl_reader"):
                admin.execute(
                    sql.SQL("alter role {} password 'secret'").format(sql.Identifier(role))
                )
        (api,) = re.findall(r"^API +(\S+)$", printed, re.MULTILINE)
        yield System(url, api, printed, home)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_SECONDS)
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute(sql.SQL("drop database {} with (force)").format(name))
            admin.execute(f"drop role if exists {STAFF}")


@pytest.fixture(scope="module")
def catalogue(system: System) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to the database of the running system."""
    with psycopg.connect(
        system.url, autocommit=True, options="-c search_path=darkpearl"
    ) as connection:
        yield connection


def column(catalogue: psycopg.Connection[Any], query: str, *parameters: Any) -> list[Any]:
    """The first column of a query."""
    found = catalogue.execute(query.encode(), parameters or None).fetchall()
    return [row[0] for row in found]


def run_sql(system: System, text: str) -> tuple[str, str, str]:
    """Run an SQL block as its first line says: the SQLSTATE it announces, and what came out."""
    asked = re.match(r"-- as (\w+)(?:, refused with (\w+))?", text)
    assert asked, text
    done = subprocess.run(
        [
            wheel.binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1",
            "-v", "VERBOSITY=verbose", "-d", system.login(asked[1]),
        ],
        input=text, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
        env={"PATH": os.defpath, "PGCLIENTENCODING": "UTF8", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    return asked[2] or "", done.stdout, done.stderr


# What the documents show.


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "```sql\n-- as" in (ROOT / name).read_text()]
)
def test_sql_examples_work(system: System, name: str) -> None:
    """Each SQL example runs under the role that it names, and shows what the page says."""
    for block in blocks(name):
        if block.language == "sql" and block.text.startswith("-- as "):
            system.rest()
            refusal, printed, complaint = run_sql(system, block.text)
            if refusal:
                assert f"{refusal}: " in complaint, complaint
            else:
                assert complaint == "", f"{block.text}\n{complaint}"
            assert shows(printed, block.shown), f"{block.text}\n{printed}"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl isn't installed")
def test_http_examples_work(system: System) -> None:
    """Each curl example gets an answer, and shows what the README says."""
    examples = [block for block in blocks("README.md") if block.language == "bash"]
    assert examples
    for block in examples:
        script = block.text.replace("http://127.0.0.1:8000", system.api)
        script = script.replace("make -s token", f"'{sys.executable}' -m darkpearl token")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
            env={"PATH": os.environ["PATH"], "DARKPEARL_HOME": system.home},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), block.text
        assert shows(done.stdout, block.shown), f"{block.text}\n{done.stdout}"


def test_the_first_run_looks_like_that(system: System) -> None:
    """`make run` prints the timeline and the addresses that the README shows."""
    (block,) = [
        each for each in blocks("README.md") if each.heading == "Run it" and each.language == "sh"
    ]
    (shown,) = under("README.md", "Run it", "text")
    assert "make run" in block.text
    assert shows(system.printed, shown.replace("http://127.0.0.1:8000", system.api)), system.printed


# What the documents name.


@pytest.mark.parametrize("name", [*NAMES, "bench/NOTES.md"])
def test_links_lead_somewhere(name: str) -> None:
    """Every relative link leads to a file, and its anchor to a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("name", NAMES)
def test_files_and_commands_are_there(name: str) -> None:
    """Every file, make target, command and setting that a page names exists."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(
        r"\b(?:sql|darkpearl|tests|docs)/[\w./-]*\w", " ".join(ticked(prose(name)))
    ):
        assert path in NEW or (ROOT / path).exists(), path
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = "\n".join([*ticked(prose(name)), *(each.text for each in blocks(name))])
    for target in re.findall(r"(?:^|\()make (?:-s )?([a-z-]+)", code, re.MULTILINE):
        assert target in targets, target
    for line in re.findall(r"^darkpearl (.+?)(?: *#.*)?$", code, re.MULTILINE):
        group: click.Command = cli.command
        for word in line.replace("…", "").split():
            if isinstance(group, click.Group):
                assert word in group.commands, line
                group = group.commands[word]
    known = {each.name for each in variables()}
    for setting in re.findall(r"DARKPEARL_[A-Z_]*[A-Z]", text):
        assert setting in known, setting


def test_the_endpoints_are_these() -> None:
    """docs/http.md has every path of the API, with the methods of each row's paths."""
    paths = create_app(Settings(), "").openapi_schema.to_schema()["paths"]
    real = {
        re.sub("{.*?}", "{}", path): {method.upper() for method in item if method != "parameters"}
        for path, item in paths.items()
    }
    stated: set[str] = set()
    for row in table("docs/http.md", "The HTTP interface"):
        named = {re.sub("{.*?}", "{}", path) for path in ticked(row[0])}
        assert set().union(*(real[path] for path in named)) == set(row[1].split(", ")), named
        assert not named & stated, named
        stated |= named
    assert stated == real.keys()


def test_proofs_are_tests() -> None:
    """Each proof that the README names is a file of tests."""
    for row in table("README.md", "What holds, and what proves it"):
        (path,) = re.findall(r"\]\(([^)]+)\)", row[1])
        assert re.search(r"^(?:async )?def test_", (ROOT / path).read_text(), re.MULTILINE), path


DECISIONS = [
    path for path in sorted((ROOT / "docs/decisions").glob("*.md")) if path.stem != "README"
]


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_decisions_say_what_they_cost(path: Path) -> None:
    """Each decision has its context, the decision, its cost and what was measured."""
    parts = re.findall(r"^\*\*(\w+)\.\*\* \S", path.read_text(), re.MULTILINE)
    assert parts == ["Context", "Decision", "Cost", "Measured"]


def test_decisions_are_listed() -> None:
    """The index has a line for each decision, under its title."""
    index = (ROOT / "docs/decisions/README.md").read_text()
    listed = re.findall(r"^\| \[(.+)\]\((\S+)\) \| \S", index, re.MULTILINE)
    titles = [(path.read_text().partition("\n")[0].removeprefix("# "), path) for path in DECISIONS]
    assert sorted(listed) == sorted((title, path.name) for title, path in titles)


# What docs/sql.md says of the catalogue.


def test_the_error_codes_are_these() -> None:
    """docs/sql.md, 10_base.sql and errors.py list the same SQLSTATEs, with the same HTTP status."""
    stated = {row[0]: int(row[1]) for row in table("docs/sql.md", "Errors")}
    base = (ROOT / "sql/routines/10_base.sql").read_text()
    assert sorted(stated) == re.findall(r"^--   (DP\d+)  ", base, re.MULTILINE)
    assert stated == {
        code: problem.kind.status for code, problem in PROBLEMS.items() if code.startswith("DP")
    }


def test_the_functions_are_these(catalogue: psycopg.Connection[Any]) -> None:
    """docs/sql.md has each function that a role may call, with its arguments and who may."""
    stated = {}
    for row in table("docs/sql.md", "Functions"):
        for name, arguments in re.findall(r"(\w+)\(([^)]*)\)", row[0]):
            required, _, optional = arguments.partition("[")
            wanted = [each.strip() for each in re.split(",", required) if each.strip()]
            free = [each.strip() for each in re.split(",", optional.rstrip("]")) if each.strip()]
            stated[name] = (wanted, free, set(ticked(row[1])))
    real = {}
    for name, count, defaults, arguments, roles in catalogue.execute(
        """
        select proname, pronargs, pronargdefaults, coalesce(proargnames, '{}'),
            array(
                select r from unnest(%s::text[]) as r
                where has_function_privilege(r, p.oid, 'execute')
            )
        from pg_proc as p
        where pronamespace = 'darkpearl'::regnamespace
            and not has_function_privilege('public', p.oid, 'execute')
        """,
        [ROLES],
    ).fetchall():
        if roles and name != "idle_lock_key":
            given = arguments[:count]
            real[name] = (given[: count - defaults], given[count - defaults :], set(roles))
    assert stated == real


def test_tables_and_views_are_these(catalogue: psycopg.Connection[Any]) -> None:
    """docs/sql.md has every table and view, and names no column that isn't there."""
    columns: dict[str, set[str]] = {}
    for name, each in catalogue.execute(
        "select table_name, column_name from information_schema.columns"
        " where table_schema = 'darkpearl'"
    ):
        columns.setdefault(name, set()).add(each)
    tables, views = table("docs/sql.md", "Tables"), table("docs/sql.md", "Views")
    for row in [*tables, *views]:
        (name,) = ticked(row[0])
        assert set(ticked(" ".join(row[1:]))) <= columns[name] | columns.keys(), name
    stated = [ticked(row[0])[0] for row in [*tables, *views]]
    parts = column(catalogue, "select inhrelid::regclass::text from pg_inherits")
    assert sorted(stated) == sorted(columns.keys() - set(parts))


@pytest.mark.parametrize(
    ("heading", "query"),
    [
        ("Events", "select unnest(enum_range(null::saga_event_type))::text"),
        ("Sagas", "select unnest(enum_range(null::saga_status))::text"),
        (
            "Roles",
            """
            select distinct grantee::regrole::text
            from pg_namespace, aclexplode(nspacl) where nspname = 'darkpearl'
            """,
        ),
    ],
)  # fmt: skip
def test_the_words_are_these(catalogue: psycopg.Connection[Any], heading: str, query: str) -> None:
    """docs/sql.md has each event type, each saga status and each role."""
    stated = [word for row in table("docs/sql.md", heading) for word in ticked(row[0])]
    assert sorted(stated) == sorted(column(catalogue, query))


def test_the_plans_columns_are_these(catalogue: psycopg.Connection[Any]) -> None:
    """docs/sql.md explains each column of saga_steps."""
    text = (ROOT / "docs/sql.md").read_text().split("The plan, `saga_steps`:")[1].split("\n\n")[1]
    stated = [word for row in text.splitlines()[2:] for word in ticked(row.split("|")[1])]
    real = column(
        catalogue,
        "select column_name from information_schema.columns"
        " where table_schema = 'darkpearl' and table_name = 'saga_steps'",
    )
    assert sorted(stated) == sorted(real)


@pytest.mark.parametrize("name", NAMES)
def test_functions_in_the_prose_are_there(catalogue: psycopg.Connection[Any], name: str) -> None:
    """Every function that a page names with its parentheses exists, here or in PostgreSQL."""
    real = set(
        column(
            catalogue,
            "select proname from pg_proc"
            " where pronamespace in ('darkpearl'::regnamespace, 'pg_catalog'::regnamespace)",
        )
    )
    named = re.findall(r"\b(\w+)\(", " ".join(ticked(prose(name))))
    assert set(named) <= real
