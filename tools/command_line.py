"""How `python -m` commands of the repository read their command lines.

Commands are functions with annotated parameters, which typer reads. Each is run with `run(function, description)`, so
that all of them show their help alike.
"""

from collections.abc import Callable

import typer


def run(command: Callable[..., object], description: str | None) -> None:
    """Reads the command line, calls the command with it and exits.

    Args:
        command: A function whose parameters are annotated for typer.
        description: What `--help` shows before the options, line for line as it is written: usually `__doc__`.

    Raises:
        SystemExit: The command is done, or the command line is wrong (2).
    """
    # no --install-completion: a shell completes by a command's name, and `python -m NAME` has none of its own
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=_line_for_line(description or ""))(command)
    app()


def _line_for_line(text: str) -> str:
    # each paragraph with the mark that keeps typer from filling its lines
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.strip().split("\n\n"))
