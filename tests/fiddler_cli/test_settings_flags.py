"""Flags that are made from settings: every setting is reached, and none by a word that means two things."""

from typing import ClassVar, Literal

import typer
from pydantic import Field

from cpu_expert_service.settings import Settings as CpuSettings
from fiddler.command_line import run
from fiddler.settings import CommandSettings
from fiddler_cli.serve import _FLAGS, _OURS
from fiddler_cli.settings_flags import arguments_for, flags_of, with_flags
from gpu_service.settings import Settings as GpuSettings
from http_gateway.settings import Settings as HttpSettings


class Red(CommandSettings):
    program: ClassVar[str] = "red"
    threads: int = Field(1, description="threads")
    dtype: Literal["auto", "float32"] = Field("auto", description="dtype")
    switch: bool = Field(False, description="a switch")


class Blue(CommandSettings):
    program: ClassVar[str] = "blue"
    threads: int = Field(1, description="threads")
    dtype: Literal["auto", "float32"] = Field("auto", description="dtype")
    only_blue: str = Field("", description="a word")


FLAGS = flags_of({"red": Red, "blue": Blue}, without=[("red", "log_level"), ("blue", "log_level")])


def parsed(*arguments: str) -> tuple[list[str], list[str]]:
    found: dict[str, object] = {}

    @with_flags(FLAGS)
    def command(context: typer.Context, **settings: object) -> int:
        found.update(context.params)
        return 0

    assert run(command, arguments, module="client") == 0
    return arguments_for("red", FLAGS, found), arguments_for("blue", FLAGS, found)


def test_a_flag_reaches_the_programs_that_have_the_setting() -> None:
    assert parsed() == ([], [])
    assert parsed("--dtype", "float32") == (["--dtype=float32"], ["--dtype=float32"])
    assert parsed("--red-threads", "2") == (["--threads=2"], [])
    assert parsed("--blue-threads", "-3") == ([], ["--threads=-3"])
    assert parsed("--no-switch", "--only-blue", "--x y") == (["--no-switch"], ["--only-blue=--x y"])
    assert "log_level" not in {flag.name for flag in FLAGS}


def test_serve_reaches_every_setting_that_it_does_not_set_itself() -> None:
    reached = {each for flag in _FLAGS for each in flag.sets}
    programs: dict[str, type[CommandSettings]] = {"gpu": GpuSettings, "cpu": CpuSettings, "http": HttpSettings}
    every = {(program, name) for program, kind in programs.items() for name in kind.model_fields}
    assert reached == every - _OURS
    assert every > _OURS
    names = [flag.name for flag in _FLAGS]
    assert len(names) == len(set(names))
    assert {"gpu_threads", "cpu_threads", "max_slots", "kernel", "tokens_file", "cors_origins"} <= set(names)
    assert "threads" not in names
