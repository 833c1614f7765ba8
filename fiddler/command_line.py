"""Runs the command lines that are not services': a Typer application around one function.

Typer prints plain text here: rich's boxes suit no script, and importing rich takes longer than all of `--help`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses that all command lines share."""

# Typer exports only this subclass of click's UsageError, which covers every misuse of an option or an argument.
UsageError: Any = typer.BadParameter.__base__


def run(
    command: Callable[..., int],
    arguments: Sequence[str] | None = None,
    *,
    module: str,
    epilog: str | None = None,
) -> int:
    """Runs a command with command-line arguments.

    Shells complete a command line by its first word. So completion is offered if the program was started by the name
    of its console script, e.g. "fiddler-client", but not as `python -m client`.

    Args:
        command: The command. Its signature declares the arguments, as Typer reads them; it returns the exit status.
        arguments: The arguments; None takes the process's.
        module: The command's module, e.g. "client.top". Errors begin with it, and usage texts show `python -m` with it.
        epilog: The last paragraph of --help.

    Returns:
        The exit status: the command's; USAGE for wrong arguments, after one line on standard error; INTERRUPTED after
        Ctrl-C.
    """
    script = console_script(module)
    is_script = Path(sys.argv[0]).name == script
    app = typer.Typer(add_completion=is_script, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(epilog=epilog)(command)
    try:
        status = app(arguments, prog_name=script if is_script else f"python -m {module}", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except UsageError as error:
        return fail(module, f"{error.format_message()} (see --help)", USAGE)
    return int(status or DONE)


def console_script(module: str) -> str:
    """The name of a module's console script in pyproject.toml: "fiddler-top" for "client.top"."""
    return f"fiddler-{module.rpartition('.')[2]}"


def fail(module: str, message: str, status: int) -> int:
    """Prints a command's error as one line on standard error and returns the exit status."""
    print(f"{module}:", " ".join(message.split()), file=sys.stderr)
    return status
