"""What services are deployed by: the Dockerfile and systemd's units, as far as can be tried."""

import configparser
import json
import re
import shutil
import subprocess
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from darkpearl.cli.main import command
from darkpearl.config import Settings

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "docs/deploy/systemd").glob("*.service"))
EXPOSURE = 15
"""Tenths of systemd-analyze's points, of which 100 is a service that may do everything."""
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(not ANALYZE, reason="no systemd-analyze on this machine")


@pytest.fixture
def dockerfile() -> list[tuple[str, str]]:
    """Its instructions, with their arguments."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def last(dockerfile: list[tuple[str, str]], name: str) -> str:
    """The arguments of the last instruction of a name: that which counts."""
    return [rest for each, rest in dockerfile if each == name][-1]


def setting(unit: Path, name: str) -> list[str]:
    """What a unit says of something, in order."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def test_the_image_has_all_that_the_package_is_built_from(
    dockerfile: list[tuple[str, str]],
) -> None:
    """What pyproject.toml names is copied before it is installed, and not kept out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        *("pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]),
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"],
    }
    copies = [rest.split()[:-1] for name, rest in dockerfile if name == "COPY"]
    copied = {each for some in copies for each in some if not each.startswith("--")}
    assert needed <= copied
    let_in = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")
    }
    assert let_in == needed
    extras = re.search(
        r"'\.\[(.*)\]'", " ".join(rest for name, rest in dockerfile if name == "RUN")
    )
    assert extras
    assert set(extras[1].split(",")) <= project["project"]["optional-dependencies"].keys()


def test_the_image_runs_as_nobody(dockerfile: list[tuple[str, str]]) -> None:
    """By a number that isn't root's, and that the image has a user of."""
    user = last(dockerfile, "USER").partition(":")[0]
    assert int(user) >= 1000
    assert any(f"--uid {user} " in rest for name, rest in dockerfile if name == "RUN")
    program, *arguments = json.loads(last(dockerfile, "CMD"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert program in project["project"]["scripts"]
    assert arguments == ["--help"]
    paths = last(dockerfile, "ENV")
    assert f"PATH={last(dockerfile, 'COPY').split()[-1]}/bin:" in paths


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (503, 1), (None, 1)])
def test_the_image_knows_whether_a_service_is_well(
    dockerfile: list[tuple[str, str]], status: int | None, code: int
) -> None:
    """Any answer but a failure will do; none won't. Metrics that want a token are an answer."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    health = last(dockerfile, "HEALTHCHECK")
    python, *arguments = json.loads(health[health.index("[") :])
    assert python == "python"
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        port = str(server.server_port if status else 1)
        asked = subprocess.run(
            ["/usr/bin/env", "python3", *arguments],
            env={"DARKPEARL_METRICS_PORT": port, "PATH": "/usr/bin:/usr/local/bin"},
            capture_output=True, check=False,
        )  # fmt: skip
        server.shutdown()
    assert min(asked.returncode, 1) == code


def test_services_have_the_time_that_they_take_to_stop() -> None:
    """Nobody is killed before DARKPEARL_SHUTDOWN_SECONDS are over, nor given up right then."""
    needed = Settings().shutdown_seconds + 5
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for name in ("api", "listener", "webhooks"):
        assert int(compose["services"][name]["stop_grace_period"].removesuffix("s")) >= needed
    for unit in UNITS:
        (seconds,) = setting(unit, "TimeoutStopSec")
        assert int(seconds) >= needed


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_run_commands_and_settings_that_exist(unit: Path) -> None:
    """What is renamed is found here, and not when a service dies."""
    ((program, verb),) = [line.split() for line in setting(unit, "ExecStart")]
    assert program == "/opt/darkpearl/bin/darkpearl"
    assert verb in command.commands
    own = dict(each.split("=") for each in setting(unit, "Environment"))
    shared = configparser.ConfigParser()
    shared.optionxform = str  # type: ignore[assignment,method-assign] - names are as they are
    shared.read_string("[env]\n" + (unit.with_name("darkpearl.env")).read_text())
    Settings.from_environment(
        {**shared["env"], **{name: value.replace("%i", "9101") for name, value in own.items()}}
    )


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_units(unit: Path, tmp_path: Path) -> None:
    """Each key is one that systemd knows, and little is left that a service may do."""
    text = unit.read_text().replace("/opt/darkpearl/bin/darkpearl", "/bin/true")
    copy = tmp_path / unit.name.replace("@", "@9101")
    copy.write_text(text)
    for words in (
        ("verify", "--man=no", copy),
        ("security", "--offline=yes", f"--threshold={EXPOSURE}", copy),
    ):
        done = subprocess.run(
            [str(ANALYZE), *map(str, words)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
