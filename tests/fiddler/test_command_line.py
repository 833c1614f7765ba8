"""Command lines around one function: exit statuses, one-line errors, shell completion."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
import typer

from fiddler.command_line import FAILED, INTERRUPTED, USAGE, console_script, fail, run

ROOT = Path(__file__).parents[2]


def command(times: Annotated[int, typer.Option(help="How often.")] = 1) -> int:
    """Counts."""
    if times == 0:
        raise KeyboardInterrupt
    return times


def test_the_commands_value_is_the_exit_status() -> None:
    assert run(command, ["--times", "7"], module="client") == 7
    assert run(command, [], module="client") == 1


def test_an_interrupt_is_130() -> None:
    assert run(command, ["--times", "0"], module="client") == INTERRUPTED == 130


def test_wrong_usage_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["--times", "many"], module="client.top") == USAGE == 2
    error = capsys.readouterr().err
    assert error.startswith("client.top: Invalid value for '--times'")
    assert error.endswith(" (see --help)\n")
    assert error.count("\n") == 1


def test_an_error_of_several_lines_is_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail("pair", "first\n  second", FAILED) == 1
    assert capsys.readouterr().err == "pair: first second\n"


def test_help_names_the_module_and_ends_in_the_epilog(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["--help"], module="client.top", epilog="The end.") == 0
    output = capsys.readouterr().out
    assert output.startswith("Usage: python -m client.top [OPTIONS]\n")
    assert output.strip().endswith("The end.")
    assert "--install-completion" not in output, "a shell would complete every `python`"


def test_a_console_script_completes_its_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = tmp_path / console_script("client.top")
    script.write_text("import sys\nfrom client.top.__main__ import main\nsys.exit(main())\n")
    words = {"COMP_WORDS": "fiddler-top --half", "COMP_CWORD": "1", "_FIDDLER_TOP_COMPLETE": "complete_bash"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **words}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "--half-life\n")
    help_text = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False).stdout
    assert help_text.startswith("Usage: fiddler-top [OPTIONS]")
    assert "--install-completion" in help_text
    assert "--show-completion" in help_text


def test_console_scripts_are_named_after_their_modules() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    modules = [target.removesuffix(".__main__:main") for target in scripts.values()]
    assert modules == ["fiddler_cli", "client", "client.top", "pair"]
    assert list(scripts) == ["fiddler", *(console_script(module) for module in modules[1:])]
