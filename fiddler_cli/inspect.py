"""`fiddler inspect MODEL`: what a model takes on this machine, and how fast it could be; nothing is served."""

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fiddler.checkpoint.first_look import first_look
from fiddler.checkpoint.tokenizer_files import check_tokenizer
from fiddler.command_line import DONE, FAILED, fail
from fiddler.errors import UserError
from fiddler.hub.download import look_without_weights
from fiddler.hub.names import locate
from fiddler_cli.arguments import Model
from fiddler_cli.settings_flags import arguments_for, flags_of, with_flags
from gpu_service.settings import Settings
from pair import print_dry_run

_PROGRAM: Final = "fiddler"
_PROGRAMS: Final = {"gpu": Settings}
_FLAGS: Final = [
    flag
    for flag in flags_of(_PROGRAMS, without=[("gpu", "model"), ("gpu", "dry_run"), ("gpu", "dry_run_format")])
    if flag.name
    in {
        *("device", "dtype", "expert_format", "dense_format"),
        *("gpu_expert_memory", "kv_memory", "max_slots", "max_context", "placement"),
    }
]


@with_flags(_FLAGS)
def inspect(
    context: typer.Context,
    model: Model,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    **settings: Any,
) -> int:
    """Tells whether a model can be served here, what it takes, and how fast it could be at most.

    Of a model that is not in the cache only the headers of its weights are read from the hub.
    """
    arguments = arguments_for("gpu", _FLAGS, context.params)
    Settings.load(["--model", model, *arguments])
    if as_json:
        arguments += ["--dry-run-format", "json"]
    try:
        with look_without_weights(model, say=_note) as directory:
            first_look(directory)  # here too, since the dry run's process takes seconds to start
            check_tokenizer(directory)
            text = print_dry_run(directory, *arguments)
            if directory != locate(Path(model)):  # it stands for the model's name, and is gone afterwards
                text = text.replace(str(directory), model)
            print(text.rstrip())
        return DONE
    except UserError as error:
        return fail(_PROGRAM, str(error), FAILED)


def _note(line: str) -> None:
    print(f"{_PROGRAM}: {line}", file=sys.stderr, flush=True)
