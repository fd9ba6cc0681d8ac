"""The cluster: made whole or not at all, and who is let into it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from darkpearl.embedded.home import failure, kept_secret
from darkpearl.embedded.wheel import Account, environment, version_of

OWNER = "darkpearl"
"""Name of the superuser and of the database."""

FIRST_WITH_BUILTIN_LOCALE = 17

HBA = """\
local all         all              peer map=owner
local replication all              peer map=owner
host  all         all 127.0.0.1/32 scram-sha-256
"""


def create(data: Path, home: Path, account: Account, binaries: Path) -> None:
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
        locale = ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
        initdb: list[str | Path] = [
            binaries / "initdb", "--pgdata", fresh, "--username", OWNER, "--pwfile", file,
            "--encoding", "UTF8", "--locale", "C",
            *(locale if version_of(binaries) >= FIRST_WITH_BUILTIN_LOCALE else ()),
            "--auth", "scram-sha-256", "--no-instructions",
        ]  # fmt: skip
        single: list[str | Path] = [binaries / "postgres", "--single", "-D", fresh, "postgres"]
        for command, given in ((initdb, ""), (single, f"create database {OWNER};\n")):
            done = subprocess.run(
                command, input=given, text=True, check=False, cwd="/", env=environment(),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **account.switch(),
            )  # fmt: skip
            if done.returncode:
                raise failure("the database can't be made", done.stdout, home)
        fresh.rename(data)


def let_in(data: Path, account: Account) -> None:
    """Have the server let in: by TCP with a password, through the socket who runs it, and we."""
    (data / "pg_hba.conf").write_text(HBA)
    users = {account.name, "root", pwd.getpwuid(os.geteuid()).pw_name}
    idents = "".join(f'owner "{user}" all\n' for user in sorted(users))
    (data / "pg_ident.conf").write_text(idents)
