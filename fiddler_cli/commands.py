"""The subcommands: what each does, and where its code is. Importing this table imports none of it."""

import importlib
from dataclasses import dataclass
from typing import Any, Final

import typer

from fiddler.command_line import application


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One subcommand, imported when it is used."""

    summary: str
    """Its line in `fiddler --help`."""
    place: str
    """MODULE:NAME of a Typer application, or of a function that Typer can read."""

    def load(self) -> Any:
        """The command, as Typer makes it of an application."""
        module, _, name = self.place.partition(":")
        target = getattr(importlib.import_module(module), name)
        return typer.main.get_command(target if isinstance(target, typer.Typer) else application(target))


SUBCOMMANDS: Final = {
    "serve": Subcommand("Serve a model: both services, OpenAI's API and a page.", "fiddler_cli.serve:serve"),
    "chat": Subcommand("Chat with the model that is served.", "client.__main__:chat_app"),
    "generate": Subcommand("Continue a text with the model that is served.", "client.__main__:generate_app"),
    "top": Subcommand("Watch speed, health and experts, live.", "client.top.__main__:app"),
    "inspect": Subcommand("Tell whether a model runs here, and how fast at most.", "fiddler_cli.inspect:inspect"),
    "models": Subcommand(
        "List the families of models that run, and those refused.", "gpu_service.models.__main__:main"
    ),
    "doctor": Subcommand("Look at this machine: what it has, what to do.", "fiddler_checkup.doctor.__main__:app"),
    "bench": Subcommand("Measure a model here, and say what bounds its speed.", "fiddler_checkup.bench.__main__:app"),
    "convert": Subcommand("Write a copy of a model in 8 or 4 bits.", "fiddler_cli.convert:convert"),
    "profile": Subcommand("Count which experts a model chooses on prompts.", "fiddler_cli.profile:profile"),
}
