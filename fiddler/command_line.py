"""Runs the command lines that are not services': a Typer application around one function.

Typer prints plain text here: rich's boxes suit no script, and importing rich takes longer than all of `--help`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import typer

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses that all command lines share."""

_program: ContextVar[str | None] = ContextVar("_program", default=None)
"""What errors begin with, if that is not the module of the command."""

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
    app = application(command, epilog=epilog, completes=is_script)
    return execute(app, arguments, name=script if is_script else f"python -m {module}", module=module)


def application(command: Callable[..., int], *, epilog: str | None = None, completes: bool = False) -> typer.Typer:
    """The Typer application of one command.

    Args:
        command: See `run`.
        epilog: The last paragraph of --help.
        completes: Whether it offers to install shell completion.
    """
    app = typer.Typer(add_completion=completes, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(epilog=epilog)(command)
    return app


def execute(app: typer.Typer, arguments: Sequence[str] | None, *, name: str, module: str) -> int:
    """Runs an application whose commands return exit statuses.

    Args:
        app: The application.
        arguments: The arguments; None takes the process's.
        name: What usage texts call it.
        module: What its own errors begin with.

    Returns:
        The exit status, as for `run`.
    """
    try:
        status = app(arguments, prog_name=name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except UsageError as error:
        context = getattr(error, "ctx", None)
        command = f"{context.command_path} " if context and context.parent else ""
        hint = "; quote an argument that has spaces" if "unexpected extra argument" in error.format_message() else ""
        return fail(module, f"{error.format_message()}{hint} (see {command}--help)", USAGE)
    return int(status or DONE)


@contextmanager
def named_program(name: str) -> Iterator[None]:
    """Lets all errors within the block begin with a name, whatever module they come from."""
    token = _program.set(name)
    try:
        yield
    finally:
        _program.reset(token)


def console_script(module: str) -> str:
    """The name of a module's console script in pyproject.toml: "fiddler-top" for "client.top"."""
    return f"fiddler-{module.rpartition('.')[2]}"


def shown_command(module: str) -> str:
    """How the user types another of these programs: as this one was started, by its script or by this Python."""
    if Path(sys.argv[0]).name.startswith("fiddler-"):
        return console_script(module)
    python = Path(sys.executable)
    # not resolved: a virtual environment's python is a link
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return f"{python} -m {module}"


def fail(module: str, message: str, status: int) -> int:
    """Prints a command's error as one line on standard error and returns the exit status."""
    print(f"{_program.get() or module}:", " ".join(message.split()), file=sys.stderr)
    return status
