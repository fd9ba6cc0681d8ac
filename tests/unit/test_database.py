"""The way to the database, as far as no server is needed to see it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from darkpearl import schema
from darkpearl.database import open_pool


def test_a_server_that_vanished_is_given_up() -> None:
    """Within half a minute, at rest or waiting for an answer, unless the address says otherwise."""

    def asked_for(url: str) -> dict[str, int]:
        given = conninfo_to_dict(open_pool(url, size=1, name="test").conninfo)
        names = ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
        return {name: int(str(given[name])) for name in names}

    ours = asked_for("postgresql://db.example/shop")
    at_rest = ours["keepalives_idle"] + ours["keepalives_interval"] * ours["keepalives_count"]
    assert at_rest <= 30
    assert ours["tcp_user_timeout"] <= 30_000
    theirs = asked_for("postgresql://db.example/shop?keepalives_idle=99&tcp_user_timeout=0")
    assert theirs == {**ours, "keepalives_idle": 99, "tcp_user_timeout": 0}


def test_no_password_is_in_the_process_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump gets it where only its own user looks."""
    ran: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        ran.update(options, command=command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    schema._dump("postgresql://me:hush@box/shop", Path("pg_dump"))
    assert "hush" not in str(ran["command"])
    assert ran["env"]["PGPASSWORD"] == "hush"
