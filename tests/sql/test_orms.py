"""docs/orm.md: what it shows is run, as the programs that a reader makes of it."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from darkpearl import schema

PAGE = (Path(__file__).parents[2] / "docs" / "orm.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NODE = shutil.which("node")


def shown(section: str, language: str) -> str:
    """What a section has in a language."""
    (block,) = re.findall(
        rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL
    )
    return str(block)


def printed(url: str, *command: str, given: str) -> str:
    """What a program prints that is let in as an application, and given a text to run."""
    parts = conninfo_to_dict(url)
    done = subprocess.run(
        command,
        input=given,
        env={
            **{
                name: os.environ[name]
                for name in ("PATH", "PYTHONPATH", "NODE_PATH")
                if name in os.environ
            },
            "PGHOST": str(parts["host"]),
            "PGPORT": str(parts["port"]),
            "PGUSER": str(parts["user"]),
            "PGPASSWORD": str(parts["password"]),
            "PGDATABASE": str(parts["dbname"]),
            "PGOPTIONS": "-c role=darkpearl_app -c search_path=darkpearl",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def demo_url(database_url: str) -> str:
    """A database with the demo data."""
    assert asyncio.run(schema.seed(database_url))
    return database_url


def test_sqlalchemy_does_what_the_page_shows(demo_url: str) -> None:
    """An order with lines in one transaction, read again, and a refusal with its cause."""
    program = shown("SQLAlchemy", "python") + shown("In one call", "python")
    expected = shown("SQLAlchemy", "text") + shown("In one call", "text")
    assert printed(demo_url, sys.executable, "-", given=program) == expected


def test_django_does_what_the_page_shows(demo_url: str) -> None:
    """An order with lines in one transaction, read again, and a refusal with its cause."""
    program = shown("Django", "python")
    assert printed(demo_url, sys.executable, "-", given=program) == shown("Django", "text")


def has_node_pg() -> bool:
    """Node is here, and finds node-pg."""
    if NODE is None:
        return False
    asked = [NODE, "-e", "require.resolve('pg')"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_node_pg(), reason="there is no node with pg here (npm install pg)")
def test_node_pg_does_what_the_page_shows(demo_url: str) -> None:
    """An order with lines in one transaction, read again, and a refusal with its cause."""
    program = shown("node-pg", "javascript")
    assert printed(demo_url, str(NODE), "-", given=program) == shown("node-pg", "text")
