"""The flags that are derived from annotated options."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Annotated, Any, TypedDict, Unpack

import pytest
import typer

from client import ConnectionOptions, GenerateOptions
from client._cli.flags import given, with_flags
from client._options import Option, options_of
from fiddler.command_line import run


class SomeOptions(TypedDict, total=False):
    """Options of every type that the library's options have."""

    new_number: Annotated[float | None, Option("A new sampler's number.")]
    new_count: Annotated[int | None, Option("A new sampler's count.")]
    new_switch: Annotated[bool | None, Option("Turn the new sampler on.")]
    new_ids: Annotated[Sequence[int] | None, Option("A token id.")]
    new_texts: Annotated[str | Sequence[str] | None, Option("A text.")]
    new_file: Annotated[str | PathLike[str] | None, Option("A file.")]


def parsed(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    @with_flags(SomeOptions)
    def command(context: typer.Context, **options: Unpack[SomeOptions]) -> int:
        found.update(given(SomeOptions, context.params))
        return 0

    assert run(command, arguments, module="client") == 0
    return found


def test_a_field_is_all_that_an_option_needs_to_be_a_flag() -> None:
    flags = "--new-number 0.5 --new-count 0 --new-switch --new-ids 1 --new-ids 2 --new-texts a --new-file f"
    options = parsed(*flags.split())
    assert str(options.pop("new_file")) == "f"
    expected = {"new_number": 0.5, "new_count": 0, "new_switch": True, "new_ids": [1, 2], "new_texts": ["a"]}
    assert options == expected


def test_what_is_not_given_is_left_out() -> None:
    assert parsed() == {}


def test_help_says_what_each_option_means(capsys: pytest.CaptureFixture[str]) -> None:
    parsed("--help")
    output = " ".join(capsys.readouterr().out.split())
    assert "--new-number <float> A new sampler's number." in output
    assert "A token id; may be repeated." in output


@pytest.mark.parametrize("kind", [GenerateOptions, ConnectionOptions])
def test_every_option_of_the_library_says_what_it_means(kind: type) -> None:
    options: Mapping[str, tuple[Any, Option]] = options_of(kind)
    assert options
    for name, (_, option) in options.items():
        assert option.help.endswith("."), name
