"""Shell completion, and the manual: docs/cli.md, written from the commands themselves."""

from collections.abc import Iterator

import rich_click as click
from click.shell_completion import get_completion_class

HEAD = """# The command line

`darkpearl`, command by command, as `darkpearl manual` prints it. Every command has `--help`.

Exit codes: 0 fine; 1 it couldn't be done, or what was looked for is there (`audit`, `doctor`,
`payments reconcile`, a saga that is stuck in `watch`); 2 the command, a setting or what was asked
for is wrong; 3 one of several cells doesn't answer, and what is told is that of the others. Errors
are one line each on standard error.

Of several cells, lists are of all of them, with a column `cell`; a command about one thing goes to
the cell that has it, a bulk action to each after a look at all. `--cell` names one.

Commands that look do so as whoever logs in, in sessions that can't write. Commands that act need a
login that may act as `service_role`; where they need a reason, it stands in `action_log` under the
login's name. With `--json` each row is one JSON object on a line, with amounts as texts. The number
of an order may stand in place of its id.

Completion: `source <(darkpearl completion bash)` in `~/.bashrc`; zsh and fish likewise.
"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and options."""
    made = get_completion_class(shell)
    assert made  # noqa: S101 - one of the choices
    root = context.find_root().command
    click.echo(made(root, {}, "darkpearl", "_DARKPEARL_COMPLETE").source())


@click.command(hidden=True)
@click.pass_context
def manual(context: click.Context) -> None:
    """Print docs/cli.md."""
    click.echo(markdown(context.find_root().command), nl=False)


def markdown(root: click.Command) -> str:
    """The manual of a command and all below it."""
    return HEAD + "".join(_sections(root, "darkpearl", 2))


def _sections(command: click.Command, path: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    if level > 2:  # noqa: PLR2004 - the program itself is the page
        yield f"\n{'#' * min(level - 1, 4)} {path}\n\n"
        yield f"{_inline(command.help)}\n"
        if not isinstance(command, click.Group):
            usage = " ".join(command.collect_usage_pieces(context))
            yield f"\n```text\n{path} {usage}\n```\n"
        options = [each for each in command.params if isinstance(each, click.Option)]
        if options:
            yield "\n| Option | |\n|---|---|\n"
        for option in options:
            record = option.get_help_record(context)
            if record:
                names, words = (_cell(part) for part in record)
                yield f"| `{names}` | {words} |\n"
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            if not command.commands[name].hidden:
                yield from _sections(command.commands[name], f"{path} {name}", level + 1)


def _inline(words: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (words or "").split("\n\n"))


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")
