"""The home: the folder of an embedded server, and where its parts are that can't be in it."""

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from darkpearl.embedded.wheel import ELSEWHERE, Account, EmbeddedError, make_folder, unwritable

LONGEST_SOCKET_PATH = 100


def made(home: Path) -> Path:
    """The home as an absolute path; made if it isn't there."""
    home = home.absolute()
    try:
        make_folder(home, mode=0o711 if os.geteuid() == 0 else 0o700)
        private(home / "lock")
    except OSError as error:
        raise unwritable(home, error) from None
    return home


def private(path: Path) -> Path:
    """A file that only we can open: others could hold its lock, or read what it tells."""
    path.touch(mode=0o600)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return path


def kept_secret(home: Path, name: str) -> str:
    """A random text that only we can read, kept in the home; EmbeddedError when it can't be."""
    path = made(home) / name
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


def place_of(home: Path, account: Account, say: Callable[[str], None]) -> Path:
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


def socket_folder(place: Path, account: Account) -> Path:
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


def log_of(home: Path) -> Path:
    """The file that the server writes to."""
    return home / "postgresql.log"


def failure(what: str, said: str, home: Path) -> EmbeddedError:
    """The one line for words of PostgreSQL: the last that tells what is wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL:" in line or "PANIC:" in line or "error:" in line]
    last = (telling or lines or ["no word from it"])[-1]
    return EmbeddedError(f"{what}: {last} (log: {log_of(home)})")
