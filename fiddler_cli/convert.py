"""`fiddler convert MODEL OUT`: `python -m fiddler.convert`, for a model that may have to be downloaded first."""

import inspect
from inspect import Parameter
from pathlib import Path
from typing import Any, Final

from fiddler.command_line import FAILED, fail
from fiddler.convert.__main__ import command
from fiddler.errors import UserError
from fiddler_cli.arguments import Model, Yes
from pair import obtain_model

_PROGRAM: Final = "fiddler"


def convert(model: str, yes: bool, **options: Any) -> int:
    """Stands for `command`, whose signature it takes over."""
    try:
        directory = obtain_model(model, module=_PROGRAM, assume_yes=yes, is_served=False)
    except UserError as error:
        return fail(_PROGRAM, str(error), FAILED)
    return command(Path(directory), **options)


def _signature() -> inspect.Signature:
    """That of `command`, with a model that may be a name, and --yes."""
    model = Parameter("model", Parameter.POSITIONAL_OR_KEYWORD, annotation=Model)
    yes = Parameter("yes", Parameter.KEYWORD_ONLY, default=False, annotation=Yes)
    own = [each for name, each in inspect.signature(command).parameters.items() if name != "model"]
    return inspect.Signature([model, *own, yes])


convert.__doc__ = command.__doc__
convert.__signature__ = _signature()  # type: ignore[attr-defined]
