"""What others make of docs/openapi.yaml with Node: types for TypeScript, and linters' verdicts.

`make clients` installs what is needed. Where that isn't there, it is left out.
"""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
DESCRIPTION = HERE.parents[1] / "docs" / "openapi.yaml"
MODULES = HERE / "node_modules"
PATIENCE_SECONDS = 300
QUIET = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run() -> Run:
    """Runs a command of the packages; what came of it."""
    if not MODULES.exists() or shutil.which("node") is None:
        pytest.skip("Node and its packages aren't here: make clients installs them with npm")

    def command(name: str, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
        program = name if name == "node" else MODULES / ".bin" / name
        return subprocess.run(
            [program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
            **{"env": os.environ | QUIET, **more},
        )

    return command


def test_a_week_compiles_strictly_and_runs(run: Run, running: Any, tmp_path: Path) -> None:
    """Its types are generated with default flags, and what compiles under --strict works."""
    done = run("openapi-typescript", DESCRIPTION, "--output", tmp_path / "schema.ts")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(HERE / "week.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(MODULES.resolve())
    flags = ("--strict", "--target", "es2022", "--module", "nodenext")
    done = run("tsc", *flags, "week.ts", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    where = {"API": running.url, "TOKEN": running.token}
    done = run("node", "week.js", cwd=tmp_path, env=os.environ | where)
    assert done.returncode == 0, done.stderr
    told = Counter(line.split()[0] for line in done.stdout.splitlines())
    assert told == {
        "order.placed": 1,
        "payment.failed": 1,
        "order.paid": 1,
        "order.shipped": 2,
        "order.returned": 1,
        "order.fulfilled": 1,
        "refund.settled": 3,
    }


def test_redocly_warns_of_nothing(run: Run) -> None:
    """What it is told to leave out stands in redocly.yaml, with its reason."""
    config = HERE / "redocly.yaml"
    done = run("redocly", "lint", DESCRIPTION, "--config", config, "--format", "json")
    assert json.loads(done.stdout)["problems"] == []


def test_spectral_warns_of_nothing(run: Run) -> None:
    """The same by spectral:oas, of the least severity too; left out is what spectral.yaml says."""
    rules = HERE / "spectral.yaml"
    done = run("spectral", "lint", DESCRIPTION, "--ruleset", rules, "--fail-severity", "hint")
    assert done.returncode == 0, done.stdout + done.stderr
