"""A group of subcommands that are imported when they are used, so that help and completion are fast."""

from typing import Any

from typer.core import TyperGroup
from typing_extensions import override

from fiddler_cli.commands import SUBCOMMANDS


class LazyGroup(TyperGroup):
    """Knows the subcommands by their table."""

    @override
    def list_commands(self, ctx: Any) -> list[str]:
        return list(SUBCOMMANDS)

    @override
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        subcommand = SUBCOMMANDS.get(cmd_name)
        return None if subcommand is None else subcommand.load()

    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, subcommand.summary) for name, subcommand in SUBCOMMANDS.items()])
