"""`darkpearl up` as a process of its own, the way `make run` starts it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from psycopg.conninfo import make_conninfo

from darkpearl import embedded

PATIENCE_SECONDS = 60


class Up:
    """A running `darkpearl up`, and what it has printed."""

    def __init__(self, home: Path, *arguments: str, **settings: str) -> None:
        kept = {name: each for name, each in os.environ.items() if not name.startswith("DARKPEARL")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "darkpearl", *(arguments or ("up",))],
            env={**kept, "DARKPEARL_HOME": str(home), "DARKPEARL_PORT": "0", **settings},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.printed = ""
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.printed += line

    def ready(self) -> "Up":
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "Ctrl-C stops" not in self.printed:
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.02)
        return self

    def word(self, label: str) -> str:
        return next(line.split()[1] for line in self.printed.splitlines() if line.startswith(label))

    def end(self) -> int:
        code = self.process.wait(PATIENCE_SECONDS)
        self.reader.join()
        return code


Run = Callable[..., Up]


@pytest.fixture
def run() -> Iterator[Run]:
    """Starts an `Up` like its class does, and kills what a failed test leaves running."""
    started: list[Up] = []

    def start(home: Path, *arguments: str, **settings: str) -> Up:
        started.append(Up(home, *arguments, **settings))
        return started[-1]

    yield start
    for up in started:
        up.process.kill()
        up.end()


@pytest.fixture
def home(run: Run) -> Iterator[Path]:
    """A home without a server in it at the end."""
    assert run
    with tempfile.TemporaryDirectory(prefix="darkpearl ") as folder:
        Path(folder).chmod(0o711)
        try:
            yield Path(folder) / "home"
        finally:
            if server := embedded.running(Path(folder) / "home"):
                embedded.stop(server)


@contextlib.contextmanager
def rows_of(home: Path) -> Iterator[psycopg.Connection]:
    """A superuser of the server in a home, without triggers."""
    server = embedded.running(home)
    assert server
    options = "-c search_path=darkpearl -c session_replication_role=replica"
    with psycopg.connect(server.url, autocommit=True, options=options) as connection:
        yield connection


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes that have the home on their command line or work in it."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(home) in " ".join([*each.cmdline(), each.cwd()]):
                found.append(each)
    return found


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_up_serves_until_a_signal_and_leaves_nothing(
    run: Run, home: Path, stop: signal.Signals
) -> None:
    """It prints a fulfilled order and its addresses, and one signal ends it all in order."""
    up = run(home, DARKPEARL_MOCK_APPROVAL_RATE="1").ready()
    assert ": fulfilled" in up.printed
    with urllib.request.urlopen(up.word("OpenAPI"), timeout=10) as answer:
        assert answer.status == 200
    up.process.send_signal(stop)
    assert up.end() == 0
    assert "Traceback" not in up.printed
    assert processes_of(home) == []


def test_only_a_new_database_gets_demo_data_and_an_order(run: Run, home: Path) -> None:
    """A second run orders nothing of what there is, and an emptied catalogue stays empty."""
    up = run(home, DARKPEARL_MOCK_APPROVAL_RATE="1").ready()
    assert "demo data loaded" in up.printed
    assert "order 1: fulfilled" in up.printed
    with rows_of(home) as database:
        database.execute("delete from inventory")
        database.execute("delete from products")
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0
    up = run(home).ready()
    assert "schema: up to date\n" in up.printed
    assert "order " not in up.printed
    with rows_of(home) as database:
        counts = "select (select count(*) from products), (select count(*) from orders)"
        assert database.execute(counts).fetchone() == (0, 1)
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"DARKPEARL_ENVIRONMENT": "production", "DARKPEARL_JWT_SECRET": "x" * 32},
        {"DARKPEARL_GATEWAY": "http", "DARKPEARL_GATEWAY_URL": "http://127.0.0.1:9"},
    ],
    ids=["production", "a real gateway"],
)
def test_nothing_is_ordered_where_it_would_cost(
    run: Run, home: Path, settings: dict[str, str]
) -> None:
    """In production, and where a gateway would be asked for money, a new database stays empty."""
    up = run(home, **settings).ready()
    assert "demo" not in up.printed
    with rows_of(home) as database:
        for table in ("products", "warehouses", "orders", "sagas"):
            assert database.execute(f"select count(*) from {table}").fetchone() == (0,)
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0


def test_a_run_after_kill_9_of_everything_recovers(run: Run, home: Path) -> None:
    """Whatever was killed, the next run starts as if it had been stopped."""
    up = run(home).ready()
    killed = [up.process.pid, *(each.pid for each in processes_of(home))]
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert up.end() == -signal.SIGKILL
    up = run(home).ready()
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0


def test_a_run_after_kill_9_of_itself_alone_stops_what_was_left(run: Run, home: Path) -> None:
    """The server that the killed run left behind is used, and doesn't outlive this one."""
    up = run(home).ready()
    up.process.kill()
    up.end()
    left = embedded.running(home)
    assert left
    up = run(home).ready()
    assert embedded.running(home) == left
    up.process.send_signal(signal.SIGTERM)
    assert up.end() == 0
    assert processes_of(home) == []


def test_up_ends_when_its_server_does(run: Run, home: Path) -> None:
    """A supervisor gets an exit code instead of a process that can do nothing."""
    up = run(home).ready()
    server = embedded.running(home)
    assert server
    os.kill(server.pid, signal.SIGKILL)
    assert up.end() == 1
    assert up.printed.splitlines()[-1].startswith("darkpearl: PostgreSQL has ended")


def test_a_taken_port_is_one_line_and_starts_nothing(run: Run, home: Path) -> None:
    """Not even the folder is made."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        up = run(home, DARKPEARL_PORT=port)
        assert up.end() == 1
    assert up.printed == (
        f"darkpearl: 127.0.0.1:{port}: Address already in use; DARKPEARL_PORT sets another\n"
    )
    assert not home.exists()


def test_a_second_up_in_one_home_is_one_line(run: Run, home: Path) -> None:
    """It names the process that is there already, which goes on."""
    first = run(home).ready()
    second = run(home)
    assert second.end() == 1
    assert second.printed == (
        f"darkpearl: {home} is in use by another darkpearl (process {first.process.pid})\n"
    )
    first.process.send_signal(signal.SIGINT)
    assert first.end() == 0


def test_a_bad_setting_is_one_line(run: Run) -> None:
    """Exit code 2: the command was wrong, not the world."""
    up = run(Path("/dev/null"), DARKPEARL_PORT="many")
    assert up.end() == 2
    assert up.printed.count("\n") == 1
    assert up.printed.startswith("darkpearl: DARKPEARL_PORT: 'many' is not allowed; give")


def test_a_bad_home_is_one_line(run: Run) -> None:
    """A folder that can't be written is named."""
    up = run(Path("/dev/null"))
    assert up.end() == 1
    assert up.printed.startswith("darkpearl: cannot use /dev/null/lock: ")
    assert up.printed.count("\n") == 1


def test_the_demo_shows_every_ending(run: Run, home: Path) -> None:
    """Fulfilled, without stock, declined; in a database of its own, exit code 0."""
    demo = run(home, "demo")
    assert demo.end() == 0, demo.printed
    titles = [line for line in demo.printed.splitlines() if line.startswith("order ")]
    assert [title.split()[-1] for title in titles] == ["fulfilled"] * 2 + ["cancelled"] * 2
    assert not home.exists()


def test_the_owner_of_a_database_needs_no_superuser(run: Run) -> None:
    """The owner of a database who may create roles can migrate it and run it all.

    The API needs the login that is its own, since nobody else's claims are believed.
    """
    with embedded.temporary() as server:
        with psycopg.connect(server.url, autocommit=True) as superuser:
            superuser.execute("create role landlord login createrole password 'x'")
            superuser.execute("create database house owner landlord")
        url = make_conninfo(server.url, user="landlord", password="x", dbname="house")
        up = run(server.home, DARKPEARL_DATABASE_URL=url)
        assert up.end() == 1
        assert "DARKPEARL_API_DATABASE_URL gives it a login of its own" in up.printed
        assert "Traceback" not in up.printed
        with psycopg.connect(url, autocommit=True) as landlord:
            landlord.execute("alter role darkpearl_api password 'y'")
        api = make_conninfo(url, user="darkpearl_api", password="y")
        up = run(server.home, DARKPEARL_DATABASE_URL=url, DARKPEARL_API_DATABASE_URL=api).ready()
        assert "token    darkpearl token" in up.printed
        up.process.send_signal(signal.SIGTERM)
        assert up.end() == 0


# Secrets.

MARKS = ("swordfish", "c3dvcmRmaXNo")
"""The secrets of these tests, plainly and as base64 shows it."""
SECRET = f"{MARKS[0]} that is longer than thirty-two characters"


def told(command: str, **settings: str) -> tuple[int, str]:
    """Exit code and output of a command that ends by itself."""
    kept = {name: each for name, each in os.environ.items() if not name.startswith("DARKPEARL")}
    done = subprocess.run(
        [sys.executable, "-m", "darkpearl", *command.split()], env={**kept, **settings},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_secrets_stay_out_of_logs_and_process_lists(run: Run, home: Path) -> None:
    """Neither what tokens are signed with, nor a token, nor a password is told to anybody.

    At the finest log level, over requests that work, are refused and fail, what the processes
    print, what PostgreSQL logs and what `ps` shows are searched.
    """
    settings = {
        "DARKPEARL_HOME": str(home),
        "DARKPEARL_JWT_SECRET": SECRET,
        "DARKPEARL_LOG_LEVEL": "debug",
    }
    up = run(home, **settings).ready()
    code, token = told("token --sub " + MARKS[0], **settings)
    assert code == 0
    api = up.word("API")
    for path, header in (
        ("/orders", f"Bearer {token.strip()}"),
        ("/stock-movements", f"Bearer {token.strip()}x"),
        ("/orders", f"Basic {MARKS[1]}"),
        (f"/orders/{MARKS[0]}", f"Bearer {token.strip()}"),
    ):
        request = urllib.request.Request(api + path, headers={"Authorization": header})
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=10).close()
    password = (home / "password").read_text().strip()
    shown = " ".join(" ".join(each.cmdline()) for each in processes_of(home))
    shown += " ".join(up.process.args) if isinstance(up.process.args, list) else ""
    up.process.send_signal(signal.SIGINT)
    assert up.end() == 0
    logged = (home / "postgresql.log").read_text()
    parts = token.strip().split(".")
    for place, text in (("printed", up.printed), ("postgresql.log", logged), ("ps", shown)):
        assert text, place
        for secret in (SECRET, password, token.strip(), parts[1], parts[2], MARKS[1]):
            assert secret not in text, place
    assert (home / "password").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["DATABASE_URL", "API_DATABASE_URL", "LISTENER_DATABASE_URL"])
def test_an_unreadable_address_is_not_repeated(name: str) -> None:
    """A password that isn't written as it should be reaches no terminal; exit code 2."""
    for address in (
        f"postgresql://me:{MARKS[0]}/x@127.0.0.1/db",
        f"postgresql://me:x@{MARKS[0]}@127.0.0.1/db",
        f"password=two {MARKS[0]} host=127.0.0.1",
    ):
        code, printed = told("db status", **{f"DARKPEARL_{name}": address})
        assert (code, printed.count("\n")) == (2, 1), printed
        assert printed.startswith(f"darkpearl: DARKPEARL_{name}: what was given is not allowed")
        assert MARKS[0] not in printed


def test_a_refused_password_is_not_repeated(run: Run, home: Path) -> None:
    """A login that fails is told in one line, by commands and by services that go on trying."""
    with embedded.serve(home):
        server = embedded.running(home)
        assert server
        address = f"postgresql://darkpearl:{MARKS[0]}@127.0.0.1:{server.port}/darkpearl"
        for command in ("db status", "up"):
            code, printed = told(command, DARKPEARL_DATABASE_URL=address, DARKPEARL_PORT="0")
            assert code == 1
            assert "password authentication failed" in printed
            assert MARKS[0] not in printed
        for command in ("api", "listener"):
            service = run(
                home, command, DARKPEARL_DATABASE_URL=address, DARKPEARL_LOG_LEVEL="debug"
            )
            deadline = time.monotonic() + PATIENCE_SECONDS
            while "password authentication failed" not in service.printed:
                assert time.monotonic() < deadline, service.printed
                time.sleep(0.02)
            service.process.send_signal(signal.SIGTERM)
            service.end()
            assert MARKS[0] not in service.printed


# Tokens.


def test_production_starts_no_api_without_keys(home: Path) -> None:
    """There is no secret by default: one line, exit code 2, and nothing is made."""
    for command in ("api", "up"):
        code, printed = told(
            command, DARKPEARL_HOME=str(home), DARKPEARL_ENVIRONMENT="production",
            DARKPEARL_PORT="0",
        )  # fmt: skip
        assert (code, printed.count("\n")) == (2, 1), printed
        assert "DARKPEARL_JWT_SECRET or DARKPEARL_JWT_JWKS" in printed
    assert not home.exists()


def test_production_starts_with_nothing_that_others_could_forge(home: Path, tmp_path: Path) -> None:
    """Plain HTTP, short secrets and keys, an issuer for everybody: one line, exit code 2."""
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    keys = tmp_path / "keys.json"
    keys.write_text(
        json.dumps({"keys": [{**RSAAlgorithm.to_jwk(short, as_dict=True), "kid": "1"}]})
    )
    published = {"DARKPEARL_JWT_AUDIENCE": "shop", "DARKPEARL_JWT_JWKS": str(keys)}
    for command, given in (
        ("api", {**published, "DARKPEARL_JWT_JWKS": "http://issuer.example/keys"}),
        ("api", {"DARKPEARL_JWT_JWKS": "https://issuer.example/keys"}),
        ("up", published),
        ("listener", {"DARKPEARL_GATEWAY": "http", "DARKPEARL_GATEWAY_URL": "http://pay.example"}),
        ("up", {"DARKPEARL_JWT_SECRET": SECRET, "DARKPEARL_WEBHOOK_SECRET": "x"}),
    ):
        code, printed = told(
            command, DARKPEARL_HOME=str(home), DARKPEARL_ENVIRONMENT="production",
            DARKPEARL_PORT="0", **given,
        )  # fmt: skip
        assert (code, printed.count("\n")) == (2, 1), printed
    assert not home.exists()


def test_tokens_are_made_in_development_alone(home: Path) -> None:
    """A secret that is there is used, and is not told; a refusal is one line with exit code 2."""
    settings = {"DARKPEARL_HOME": str(home)}
    secret = embedded.kept_secret(home, "jwt_secret")
    assert len(secret) >= 32
    assert (home / "jwt_secret").stat().st_mode & 0o777 == 0o600
    code, token = told("token", **settings)
    assert (code, token.count("."), token.count("\n")) == (0, 2, 1)
    assert (home / "jwt_secret").read_text() == secret
    for command, more, said in (
        ("token", {"DARKPEARL_ENVIRONMENT": "production"}, "production"),
        ("token", {"DARKPEARL_ENVIRONMENT": "production", "DARKPEARL_JWT_SECRET": SECRET}, "alone"),
        ("token", {"DARKPEARL_JWT_JWKS": "https://issuer.example"}, "DARKPEARL_JWT_JWKS"),
        ("token --role authenticated", {}, "255"),
        ("token --role darkpearl_owner", {}, "service_role"),
        ("token --expires 0", {}, "--expires"),
        ("token", {"DARKPEARL_JWT_SECRET": "short"}, "32 characters"),
    ):
        code, printed = told(command, **settings, **more)
        assert (code, printed.count("\n")) == (2, 1), printed
        assert said in printed
        assert secret not in printed


def test_no_token_is_made_that_nobody_takes(home: Path) -> None:
    """Where no API has a secret yet, such as in another folder, it says so and makes none."""
    code, printed = told("token", DARKPEARL_HOME=str(home))
    assert (code, printed.count("\n")) == (2, 1), printed
    assert f"there is no secret in {home}" in printed
    assert not home.exists()
    code, _ = told("token", DARKPEARL_HOME=str(home), DARKPEARL_JWT_SECRET=SECRET)
    assert code == 0
