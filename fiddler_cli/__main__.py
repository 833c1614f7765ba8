"""`fiddler`, and `python -m fiddler_cli`: the project's programs as subcommands of one."""

import gc
import sys
from collections.abc import Sequence
from typing import Annotated

from fiddler_checkup import packages

_PROGRAM = "fiddler"

with packages.told(_PROGRAM):
    from fiddler.running import interrupts

    with interrupts.quiet():
        import typer

        from fiddler import __version__
        from fiddler.command_line import FAILED, execute, fail, named_program
        from fiddler_cli.group import LazyGroup

_EPILOG = "First steps: `fiddler serve demo`, and in another terminal `fiddler chat`."


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{_PROGRAM} {__version__}")
        raise typer.Exit


def _fiddler(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serves Mixture-of-Experts models that are larger than the GPU's memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    app = typer.Typer(
        cls=LazyGroup, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True, epilog=_EPILOG
    )
    app.callback()(_fiddler)
    try:
        with named_program(_PROGRAM), packages.told(_PROGRAM):
            return execute(app, arguments, name=_PROGRAM, module=_PROGRAM)
    except SystemExit as end:  # of a program that reads its own settings
        return end.code if isinstance(end.code, int) else FAILED
    except OSError as error:
        if error.filename is not None:
            raise
        return fail(_PROGRAM, f"cannot write the output: {error.strerror or error}", FAILED)
    finally:
        gc.collect()  # client/_cli/app.py has the reason


if __name__ == "__main__":
    sys.exit(main())
