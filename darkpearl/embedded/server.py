"""A server to use: shared while another process owns it, started and stopped otherwise."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from darkpearl.embedded.cluster import create, let_in
from darkpearl.embedded.home import made, place_of, socket_folder
from darkpearl.embedded.process import (
    START_SECONDS,
    Server,
    forget_stale_pid,
    launch,
    running,
    stop,
)
from darkpearl.embedded.wheel import EmbeddedError, account_for, binaries_for, unwritable

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
    "log_min_error_statement": "panic",  # no statement and no row: they hold customers' data
    "log_parameter_max_length": "0",
    "log_error_verbosity": "terse",
}

MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of a random name in it is used
ROOM_BYTES = 2**30
UNSAFE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""For data that nobody will miss."""


@contextlib.contextmanager
def serve(
    home: Path,
    options: Mapping[str, str] | None = None,
    *,
    exclusive: bool = False,
    keep: bool = False,
    say: Callable[[str], None] = print,
    binaries: Path | None = None,
) -> Iterator[Server]:
    """A running server; one that wasn't running is stopped at the end.

    Args:
        home: the folder of the server; made if it isn't there.
        options: PostgreSQL settings that override ours, for a server started here.
        exclusive: insist on owning it, so that it is stopped at the end in any case.
        keep: leave it running all the same.
        say: told where the data went when it can't be in the home.
        binaries: the folder of another server's programs than the wheel's.

    Raises:
        EmbeddedError: no server could be had, or (exclusive) another process owns it.
    """
    home = made(home)
    deadline = time.monotonic() + START_SECONDS
    with (home / "lock").open("a+") as lock:
        while exclusive or not (server := running(home)):
            if _take(lock):
                server = running(home) or start(home, options, say=say, binaries=binaries)
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
def temporary(
    binaries: Path | None = None, options: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server that is thrown away at the end: in memory where there is room, and unsafe.

    Args:
        binaries: the folder of another server's programs than the wheel's.
        options: PostgreSQL settings beside those.

    Raises:
        EmbeddedError: no server could be had.
    """
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="darkpearl-", dir=MEMORY if roomy else None) as home:
        Path(home).chmod(0o711)  # for root's `nobody`
        settings = {**UNSAFE, **(options or {})}
        with serve(Path(home), settings, exclusive=True, binaries=binaries) as server:
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
    binaries: Path | None = None,
) -> Server:
    """Start a server that goes on running when this process ends; `serve` is for everyday use.

    Raises:
        EmbeddedError: the wheel isn't installed, a folder can't be written, or PostgreSQL
            doesn't start; then the last line of its log is in the message.
    """
    home = made(home)
    account = account_for(home)
    place = place_of(home, account, say)
    binaries = binaries_for(account, binaries)
    try:
        run = socket_folder(place, account)
        data = place / "data"
        if not data.exists():
            create(data, home, account, binaries)
        let_in(data, account)
        forget_stale_pid(data)
        return launch(home, data, run, account, binaries, {**SETTINGS, **(options or {})})
    except OSError as error:
        raise unwritable(home, error) from None
