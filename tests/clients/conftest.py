"""A shop that runs as it is deployed, and clients that others generate from docs/openapi.yaml."""

import importlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psycopg
import pytest
from server import SECRET, Process, free_port

from darkpearl.api import tokens
from darkpearl.config import Settings

HERE = Path(__file__).parent
DESCRIPTION = HERE.parents[1] / "docs" / "openapi.yaml"
PACKAGE = "generated_shop"
PATIENCE_SECONDS = 30.0

Json = dict[str, Any]


class Running:
    """An API on a socket, a listener, the service that sends webhooks, and one that takes money."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token = tokens.mint(Settings(jwt_secret=SECRET), "service_role", None, 600)


@pytest.fixture
def running(database_url: str, tmp_path: Path) -> Iterator[Running]:
    """Each a process of its own. What the test leaves behind must pass the audit."""
    port, money = free_port(), free_port()
    settings = {
        "DARKPEARL_DATABASE_URL": database_url,
        "DARKPEARL_PORT": str(port),
        "DARKPEARL_GATEWAY": "http",
        "DARKPEARL_GATEWAY_URL": f"http://127.0.0.1:{money}",
        "DARKPEARL_WEBHOOKS_TO_PRIVATE_ADDRESSES": "true",
    }
    books = ("--port", str(money), "--ledger", str(tmp_path / "books.db"))
    with ExitStack() as stack:
        stack.enter_context(Process("paysim", *books))
        for service in "api", "listener", "webhooks":
            stack.enter_context(Process(service, **settings))
        shop = Running(f"http://127.0.0.1:{port}")
        answers(f"{shop.url}/health/ready")
        answers(f"http://127.0.0.1:{money}/v1/ledger")
        yield shop
    with psycopg.connect(database_url, options="-c search_path=darkpearl") as connection:
        assert connection.execute("select * from audit").fetchall() == []


def answers(url: str) -> None:
    """Return once somebody answers there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            httpx.get(url).raise_for_status()
        except httpx.HTTPError:
            assert time.monotonic() < deadline, url
            time.sleep(0.05)
        else:
            return


class Client:
    """The client that openapi-python-client generates, and how it is called."""

    def __init__(self, shop: Running, stack: ExitStack) -> None:
        self.models = self._part("models")
        self.types = self._part("types")
        authenticated = self._part("client").AuthenticatedClient
        self._client = stack.enter_context(authenticated(base_url=shop.url, token=shop.token))

    @staticmethod
    def _part(name: str) -> ModuleType:
        return importlib.import_module(f"{PACKAGE}.{name}")

    def __call__(self, operation: str, *path: object, **arguments: object) -> Any:
        """What an operation answers, such as orders.get_order; a refusal is an error."""
        module = self._part(f"api.{operation}")
        answer = module.sync(*path, client=self._client, **arguments)
        assert not isinstance(answer, self.models.ProblemDetails), answer
        return answer


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Generated without a warning, and importable as it is."""
    generator = shutil.which("openapi-python-client", path=f"{Path(sys.executable).parent}") or (
        shutil.which("openapi-python-client")
    )
    if generator is None:
        pytest.skip("openapi-python-client is not installed: it is in the extra dev")
    folder = tmp_path_factory.mktemp("client")
    config = HERE / "openapi-python-client.yaml"
    done = subprocess.run(
        [
            *(generator, "generate", "--path", DESCRIPTION, "--output-path", folder / PACKAGE),
            *("--meta", "none", "--fail-on-warning", "--config", config),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def client(package: Path, running: Running) -> Iterator[Client]:
    """The generated client, as staff of the shop."""
    assert package
    with ExitStack() as stack:
        yield Client(running, stack)


class Receiver:
    """Somebody else's process that takes webhooks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "receiver.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/shop"
        self._reader = threading.Thread(target=self._read)
        self.events: list[Json] = []
        """What it believes, in the order in which it came."""

    def start(self, secret: str) -> None:
        """Take webhooks that are signed with a secret."""
        assert self._process.stdin
        self._process.stdin.write(f"{secret}\n")
        self._process.stdin.flush()
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        self.events.extend(map(json.loads, self._process.stdout))

    def stop(self) -> None:
        """It is killed."""
        with self._process as process:  # whose pipes are closed at the end
            process.kill()
            self._reader.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Somebody who takes webhooks, and verifies them by the library of Standard Webhooks."""
    receiver = Receiver()
    yield receiver
    receiver.stop()
