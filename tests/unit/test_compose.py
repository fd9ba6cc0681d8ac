"""The compose files, checked as far as that goes without an engine.

compose-spec.json is the Compose Specification's own schema (Apache-2.0), as Docker Compose
1.29.2 shipped it.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import rich_click as click
import yaml

from darkpearl.cli.main import command
from darkpearl.config import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["docker-compose.yml", "docker-compose.cells.yml"])
def compose(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A compose file."""
    return yaml.safe_load((ROOT / request.param).read_text())


def test_the_compose_file_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    """Every key and value is one that the Compose Specification allows."""
    schema = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
    jsonschema.validate(compose, schema, cls=jsonschema.Draft201909Validator)


def test_its_services_set_only_settings_that_exist(compose: dict[str, Any]) -> None:
    """A setting that is renamed or misspelt is found here and not when a container dies."""
    for service in compose["services"].values():
        Settings.from_environment(service["environment"])


def test_its_services_run_commands_that_exist(compose: dict[str, Any]) -> None:
    """`darkpearl api`, `darkpearl cells add …`: commands of ours, with arguments that they take."""
    ran = set()
    for service in compose["services"].values():
        if not isinstance(service.get("command"), list):
            continue  # PostgreSQL's
        program, *arguments = service["command"]
        assert program == "darkpearl"
        named: click.Command = command
        while isinstance(named, click.Group) and arguments:
            verb, *arguments = arguments
            named = named.commands[verb]
        named.make_context(verb, arguments)
        ran.add(verb)
    assert {"api", "listener", "webhooks", "migrate"} <= ran


def test_services_wait_for_services_that_there_are(compose: dict[str, Any]) -> None:
    """Nothing starts before what it needs, and what is run once is waited for to its end."""
    services = compose["services"]
    for service in services.values():
        for name, wanted in service.get("depends_on", {}).items():
            runs_on = services[name].get("restart") == "unless-stopped"
            assert wanted["condition"] == (
                "service_healthy" if runs_on else "service_completed_successfully"
            )


def test_two_cells_differ_in_their_database_alone() -> None:
    """Each cell has the same services, on a server that replicates; home is migrated last."""
    compose = yaml.safe_load((ROOT / "docker-compose.cells.yml").read_text())
    services = compose["services"]
    for name in ("api", "listener", "webhooks"):
        home, north = (services[f"{cell}-{name}"] for cell in ("home", "north"))
        differ = {
            key
            for key in home["environment"]
            if home["environment"][key] != north["environment"][key]
        }
        assert differ == {"DARKPEARL_DATABASE_URL"}
    for cell in ("home", "north"):
        assert "wal_level=logical" in services[cell]["command"]
    add = services["cells"]["command"]
    assert services["north-api"]["environment"]["DARKPEARL_DATABASE_URL"] in add
    assert services["cells"]["environment"]["DARKPEARL_DATABASE_URL"] == add[-1]
    assert "migrate-north" in services["migrate"]["depends_on"]


def test_its_only_password_is_the_one_from_the_environment(compose: dict[str, Any]) -> None:
    """Wherever a password stands, POSTGRES_PASSWORD sets it."""
    services = compose["services"].values()
    values = [str(value) for each in services for value in each["environment"].values()]
    secrets = [value for value in values if "PASSWORD" in value or "darkpearl:" in value]
    assert secrets
    assert all("${POSTGRES_PASSWORD:-" in value for value in secrets)
