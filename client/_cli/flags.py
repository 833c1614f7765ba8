"""The flags of a command, derived from the classes of client/_options.py."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from os import PathLike
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer

from client._options import Option, options_of

_Command = TypeVar("_Command", bound=Callable[..., int])


@dataclass(frozen=True, slots=True)
class _Override:
    """How a flag differs from what its option's name and type give.

    Attributes:
        flag: Another name than the option's.
        type: Another type than the option's.
        metavar: What --help calls the value.
        help: Another help than the option's.
        note: Added to the option's help.
        parse: Turns the flag's value into the option's.
    """

    flag: str | None = None
    type: Any = None
    metavar: str | None = None
    help: str | None = None
    note: str = ""
    parse: Callable[[Any], object] | None = None


def _bias_by_token_id(texts: Sequence[str]) -> dict[int, float]:
    from client._statuses import invalid  # gRPC takes longer to import than --help may take

    biases = {}
    for text in texts:
        token_id, _, bias = text.partition("=")
        try:
            biases[int(token_id)] = float(bias)
        except ValueError:
            raise invalid("--logit-bias", f"must be ID=BIAS, e.g. 17=-100, got {text!r}") from None
    return biases


def _text_of(flag: str) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        from client._statuses import invalid

        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise invalid(flag, f"cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise invalid(flag, f"{path} is not a text file") from None

    return read


def _tools_of(path: Path) -> object:
    from client._statuses import invalid

    try:
        return json.loads(_text_of("--tools")(path))
    except ValueError as error:
        raise invalid("--tools", f"{path} is not JSON: {error}") from None


def _tool_choice(word: str) -> object:
    return word if word in ("auto", "none", "required") else {"name": word}


_NO_OVERRIDE = _Override()
_OVERRIDES = {
    "n": _Override(flag="-n"),
    "logit_bias": _Override(type=list[str], metavar="ID=BIAS", parse=_bias_by_token_id),
    "stop": _Override(metavar="TEXT"),
    "include_stop_in_output": _Override(flag="--include-stop"),
    "stop_token_ids": _Override(flag="--stop-token-id", metavar="ID"),
    "early_stopping": _Override(type=str, parse=lambda word: {"true": True, "false": False}.get(word, word)),
    "logprobs": _Override(note="Printed with --json."),
    "prompt_logprobs": _Override(note="Printed with --json."),
    "forced_bos_token_id": _Override(metavar="ID"),
    "skip_special_tokens": _Override(
        flag="--keep-special-tokens", help="Leave special tokens in the text.", parse=lambda _: False
    ),
    "json_schema": _Override(type=Path, metavar="FILE", note="Read from a file.", parse=_text_of("--json-schema")),
    "grammar": _Override(type=Path, metavar="FILE", note="Read from a file.", parse=_text_of("--grammar")),
    "choice": _Override(metavar="TEXT"),
    "tools": _Override(type=Path, metavar="FILE", note="A JSON list, read from a file. With --chat.", parse=_tools_of),
    "tool_choice": _Override(type=str, metavar="CHOICE", note="With --chat.", parse=_tool_choice),
    "parallel_tool_calls": _Override(
        flag="--one-tool-call", help="Let an answer call one function only. With --chat.", parse=lambda _: False
    ),
    "template_arguments": _Override(type=str, metavar="JSON", note="With --chat."),
}


def with_flags(options: type) -> Callable[[_Command], _Command]:
    """Replaces the `**options` of a command by a flag for each option of a class of client/_options.py.

    Typer reads a command's parameters from its signature, and this changes the signature.
    """

    def change_signature(command: _Command) -> _Command:
        named = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
        flags = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name, kind, option))
            for name, (kind, option) in options_of(options).items()
        ]
        command.__signature__ = inspect.Signature([*named, *flags])  # type: ignore[attr-defined]
        return command

    return change_signature


def given(options: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a class that the command line gave, by name.

    All others are left out, so that the server's and the model's defaults apply. A 0 counts as given.

    Raises:
        InvalidRequestError: A value cannot be parsed.
    """
    values = {}
    for name in options_of(options):
        value = arguments[name]
        is_given = len(value) > 0 if isinstance(value, list | tuple) else value is not None and value is not False
        if is_given:
            parse = _OVERRIDES.get(name, _NO_OVERRIDE).parse
            values[name] = parse(value) if parse else value
    return values


def _annotation(name: str, kind: Any, option: Option) -> Any:
    override = _OVERRIDES.get(name, _NO_OVERRIDE)
    flag = override.flag or f"--{name.replace('_', '-')}"
    help = override.help or option.text
    flag_type = override.type or _flag_type(kind)
    if get_origin(flag_type) is list:
        help = f"{help.removesuffix('.')}; may be repeated."
    declared = typer.Option(flag, metavar=override.metavar, help=f"{help} {override.note}".rstrip(), show_default=False)
    return Annotated[flag_type | None, declared]


def _flag_type(kind: Any) -> Any:
    """The type that Typer parses: a path or a list if the option takes one, else the option's only type."""
    types = [each for each in get_args(kind) or (kind,) if each is not type(None)]
    for each in types:
        if get_origin(each) is PathLike:
            return Path
        if get_origin(each) is Sequence:
            return GenericAlias(list, get_args(each))
    (only,) = types
    return only
