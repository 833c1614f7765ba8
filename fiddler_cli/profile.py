"""`fiddler profile MODEL --prompts FILE --out FILE`: counts which experts a model chooses."""

from typing import Any, Final

import typer

from fiddler.command_line import FAILED, fail
from fiddler.errors import UserError
from fiddler_cli.arguments import Model, Yes
from fiddler_cli.settings_flags import arguments_for, flags_of, with_flags
from gpu_service.profile.settings import Settings
from pair import obtain_model

_PROGRAM: Final = "fiddler"
_FLAGS: Final = flags_of({"gpu": Settings}, without=[("gpu", "model")])


@with_flags(_FLAGS)
def profile(
    context: typer.Context,
    model: Model,
    *,
    yes: Yes = False,
    **settings: Any,
) -> int:
    """Counts which experts a model chooses on prompts; `fiddler serve --popularity FILE` uses the file."""
    arguments = arguments_for("gpu", _FLAGS, context.params)
    Settings.load(["--model", model, *arguments])
    try:
        directory = obtain_model(model, module=_PROGRAM, assume_yes=yes)
    except UserError as error:
        return fail(_PROGRAM, str(error), FAILED)
    from gpu_service.profile.__main__ import main

    return main(["--model", str(directory), *arguments])
