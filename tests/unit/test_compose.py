"""docker-compose.yml, checked as far as that goes without an engine.

compose-spec.json is the Compose Specification's own schema (Apache-2.0), as Docker Compose
1.29.2 shipped it.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from darkpearl.cli.main import command
from darkpearl.config import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compose() -> dict[str, Any]:
    """The compose file."""
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_the_compose_file_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    """Every key and value is one that the Compose Specification allows."""
    schema = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
    jsonschema.validate(compose, schema, cls=jsonschema.Draft201909Validator)


def test_its_services_set_only_settings_that_exist(compose: dict[str, Any]) -> None:
    """A setting that is renamed or misspelt is found here and not when a container dies."""
    for service in compose["services"].values():
        Settings.from_environment(service["environment"])


def test_its_services_run_commands_that_exist(compose: dict[str, Any]) -> None:
    """`darkpearl api` and `darkpearl listener` are commands of ours."""
    for name in ("api", "listener"):
        program, verb = compose["services"][name]["command"]
        assert program == "darkpearl"
        assert verb in command.commands


def test_its_only_password_is_the_one_from_the_environment(compose: dict[str, Any]) -> None:
    """Wherever a password stands, POSTGRES_PASSWORD sets it."""
    services = compose["services"].values()
    values = [str(value) for each in services for value in each["environment"].values()]
    secrets = [value for value in values if "PASSWORD" in value or "darkpearl:" in value]
    assert secrets
    assert all("${POSTGRES_PASSWORD:-" in value for value in secrets)
