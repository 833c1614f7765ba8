"""Makes the flags of a subcommand from the settings of the programs that it starts.

A flag without the name of a service sets what only one of them has, or what all of them share; where the same name
means something else in each, the flag begins with the service's: --gpu-threads, --cpu-threads.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from fiddler.settings import CommandSettings, ServiceSettings

_Command = TypeVar("_Command", bound=Callable[..., int])
Programs = Mapping[str, type[CommandSettings]]
"""By the short name of a program, "gpu", its settings."""

_SHARED: Final = (ServiceSettings.model_fields.keys() - {"config", "listen", "metrics_port"}) | {"tokens_file"}
"""What means the same in every program that has it."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag, and the settings that it sets."""

    name: str
    """With underscores: "gpu_threads"."""
    sets: tuple[tuple[str, str], ...]
    """(program, setting)."""
    field: FieldInfo

    @property
    def is_switch(self) -> bool:
        """Whether it is given as --name or --no-name."""
        return self.field.annotation is bool

    @property
    def annotation(self) -> Any:
        """What Typer reads. Values are passed on as they are written: the programs check them."""
        text = self.field.description or ""
        help = f"{text[:1].upper()}{text[1:]}."
        if len(programs := [program for program, _ in self.sets]) == 1:
            help = f"[{programs[0]}] {help}"
        word = f"--{self.name.replace('_', '-')}"
        declared = f"{word}/--no-{self.name.replace('_', '-')}" if self.is_switch else word
        kind = bool if self.is_switch else self._choices() or str
        metavar = None if self.is_switch or kind is not str else "VALUE"
        return Annotated[kind | None, typer.Option(declared, help=help, metavar=metavar, show_default=False)]

    def _choices(self) -> Any:
        """The type of a setting that is one of several words, so that shells complete them."""
        kind = self.field.annotation
        is_words = get_origin(kind) is Literal and all(isinstance(each, str) for each in get_args(kind))
        return kind if is_words else None


def flags_of(programs: Programs, *, without: Collection[tuple[str, str]] = ()) -> list[Flag]:
    """The flags for the settings of several programs.

    Args:
        programs: Their settings.
        without: (program, setting) of those that the subcommand sets itself.
    """
    holders: dict[str, list[str]] = {}
    for program, kind in programs.items():
        for name in kind.model_fields:
            if (program, name) not in without:
                holders.setdefault(name, []).append(program)
    flags = []
    for name, having in holders.items():
        everywhere = [program for program, kind in programs.items() if name in kind.model_fields]
        if len(everywhere) == 1 or name in _SHARED:
            sets = tuple((program, name) for program in having)
            flags.append(Flag(name, sets, programs[having[0]].model_fields[name]))
        else:
            flags += [
                Flag(f"{program}_{name}", ((program, name),), programs[program].model_fields[name])
                for program in having
            ]
    return flags


def with_flags(flags: list[Flag]) -> Callable[[_Command], _Command]:
    """Replaces the `**settings` of a command by flags. Typer reads the signature, which this changes."""

    def change_signature(command: _Command) -> _Command:
        named = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
        more = [
            Parameter(flag.name, Parameter.KEYWORD_ONLY, default=None, annotation=flag.annotation) for flag in flags
        ]
        command.__signature__ = inspect.Signature([*named, *more])  # type: ignore[attr-defined]
        return command

    return change_signature


def arguments_for(program: str, flags: list[Flag], given: Mapping[str, Any]) -> list[str]:
    """The command line of a program: the flags that were given and that set something of it."""
    arguments = []
    for flag in flags:
        value = given.get(flag.name)
        for owner, setting in flag.sets:
            if owner == program and value is not None:
                word = setting.replace("_", "-")
                if flag.is_switch:
                    arguments.append(f"--{word}" if value else f"--no-{word}")
                else:
                    arguments.append(f"--{word}={value}")
    return arguments
