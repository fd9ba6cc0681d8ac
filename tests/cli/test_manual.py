"""docs/cli.md and shell completion: both are made of the commands themselves."""

import os
import subprocess
import sys
from pathlib import Path

import rich_click as click
from terminal import Run

from darkpearl.cli.main import command

PAGE = Path(__file__).parents[2] / "docs/cli.md"


async def test_the_manual_is_that_of_the_commands(run: Run) -> None:
    """docs/cli.md is what `darkpearl manual` prints: python -m darkpearl manual > docs/cli.md."""
    done = await run("manual")
    assert (done.code, done.said) == (0, PAGE.read_text())


def test_every_command_says_what_it_does() -> None:
    """Each has a sentence, and each option its own."""

    def silent(each: click.Command, path: str) -> list[str]:
        options = [one for one in each.params if isinstance(one, click.Option)]
        found = [] if each.help else [path]
        found += [f"{path} {one.name}" for one in options if not (one.help or one.show_default)]
        if isinstance(each, click.Group):
            for name, inner in each.commands.items():
                found += silent(inner, f"{path} {name}")
        return found

    assert silent(command, "darkpearl") == []


async def test_shells_complete(run: Run) -> None:
    """Each shell has its script, and is told commands, options and choices."""
    for shell in ("bash", "zsh", "fish"):
        assert "_DARKPEARL_COMPLETE" in (await run("completion", shell)).said

    def completed(words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "darkpearl"],
            env={
                **os.environ,
                "_DARKPEARL_COMPLETE": "bash_complete",
                "COMP_WORDS": f"darkpearl {words}",
                "COMP_CWORD": str(len(words.split(" "))),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("sa") == ["sagas"]
    assert set(completed("sagas re")) == {"retry", "resume"}
    assert completed("sagas list --status st") == ["stuck"]
    assert "replication-slots" in completed("doctor --only re")


def test_a_command_waits_for_no_framework() -> None:
    """Litestar is imported by who serves, and not by everyone who asks for something."""
    looked = "import sys, darkpearl.cli.main; print([m for m in sys.modules if m == 'litestar'])"
    done = subprocess.run([sys.executable, "-c", looked], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
