"""The server's process: launched, found again by its pid file, stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from darkpearl.embedded.cluster import OWNER
from darkpearl.embedded.home import failure, log_of, private
from darkpearl.embedded.wheel import Account, EmbeddedError, environment

START_SECONDS = 60.0
STOP_SECONDS = 30.0
LARGEST_LOG_BYTES = 10_000_000


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


def running(home: Path) -> Server | None:
    """The server that accepts connections in this home, whoever started it."""
    home = home.absolute()
    data = (home / "data").resolve()
    lines = _pid_file(data)
    if len(lines) < 8 or lines[7].strip() != "ready" or not _is_postmaster(int(lines[0]), data):  # noqa: PLR2004
        return None
    return Server(home, data, run=Path(lines[4]), port=int(lines[3]), pid=int(lines[0]))


def launch(
    home: Path, data: Path, run: Path, account: Account, binaries: Path, options: Mapping[str, str]
) -> Server:
    """Run postgres and wait until it accepts connections."""
    log = log_of(home)
    if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
        private(log).replace(log.with_suffix(".log.old"))
    deadline = time.monotonic() + START_SECONDS
    while True:
        before = log.stat().st_size if log.exists() else 0
        settings = {"port": str(_free_port()), **options, "unix_socket_directories": str(run)}
        command: list[str | Path] = [binaries / "postgres", "-D", data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with private(log).open("ab") as output:
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
            raise failure("PostgreSQL doesn't start", words, home)
        time.sleep(0.2)


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
    raise EmbeddedError(
        f"PostgreSQL (process {server.pid}) doesn't stop; see {log_of(server.home)}"
    )


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


def forget_stale_pid(data: Path) -> None:
    """Remove a pid file whose process is now a stranger; PostgreSQL would wait for it for ever.

    The file of a dead process stays: PostgreSQL itself checks then that no orphan still uses
    the shared memory that the file names.
    """
    lines = _pid_file(data)
    if lines and _alive(int(lines[0])) and not _is_postmaster(int(lines[0]), data):
        (data / "postmaster.pid").unlink()


def _is_postmaster(pid: int, data: Path) -> bool:
    """The process runs and is the server of this data folder, in which it works."""
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
