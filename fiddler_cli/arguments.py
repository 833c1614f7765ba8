"""Arguments that several subcommands have."""

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A directory; ORG/NAME[@REVISION] of the Hugging Face hub; or demo.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Download the model without a question.")]
