"""The command `fiddler`: its subcommands, and what its help and its completion take."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from client.__main__ import main as client_main
from fiddler import command_line
from fiddler_cli.__main__ import main
from fiddler_cli.commands import SUBCOMMANDS
from tests.support.fake_server import PIECES, serving

ROOT = Path(__file__).parents[2]


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_all_subcommands_and_imports_none() -> None:
    code = (
        "import sys\nfrom fiddler_cli.__main__ import main\nstatus = main(['--help'])\n"
        "print(status, sorted({'torch', 'grpc', 'pydantic', 'rich', 'client', 'pair'} & set(sys.modules)))"
    )
    output = _run(code).stdout
    assert output.startswith("Usage: fiddler [OPTIONS] COMMAND")
    assert re.findall(r"^  ([a-z]+)  +[A-Z]", output.split("Commands:")[1], re.M) == list(SUBCOMMANDS)
    assert output.endswith("0 []\n"), "so that it takes no longer than Python and Typer do"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_can_be_loaded_and_describes_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"Usage: fiddler {name} ")
    assert "[default: None]" not in output


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fiddler ", {*SUBCOMMANDS}),
        ("fiddler in", {"inspect"}),
        ("fiddler serve --gpu-me", {"--gpu-metrics-port"}),
        ("fiddler serve --placement ada", {"adaptive"}),
        ("fiddler chat --syst", {"--system"}),
    ],
)
def test_shells_complete_subcommands_and_their_options(words: str, offered: set[str]) -> None:
    number = str(len(words.split(" ")) - 1)
    variables = {"COMP_WORDS": words, "COMP_CWORD": number, "_FIDDLER_COMPLETE": "complete_bash"}
    done = _run("from fiddler_cli.__main__ import main; main()", **variables)
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["serv", "demo"], "fiddler: No such command 'serv'. (see --help)\n"),
        (["serve"], "fiddler: Missing argument 'MODEL'. (see fiddler serve --help)\n"),
        (["generate"], "fiddler: Missing argument 'PROMPT' (see fiddler generate --help)\n"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == command_line.USAGE
    assert capsys.readouterr().err == error


def test_chat_and_generate_are_the_client(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with serving() as server:
        target = ["--target", server.target, "--max-tokens", "4"]
        assert main(["generate", "Once", *target]) == 0
        assert capsys.readouterr().out == "".join(PIECES) + "\n"
        assert main(["chat", "Hello", "--json", *target]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert "".join(line["chunk"]["text"] for line in lines if "chunk" in line) == "".join(PIECES)


def test_errors_have_the_name_of_the_program_that_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["Once", "--target", "127.0.0.1:1", "--timeout", "5"]
    assert client_main(arguments) == 3
    assert capsys.readouterr().err.startswith("client: ")
    assert main(["generate", *arguments]) == 3
    assert capsys.readouterr().err.startswith("fiddler: ")
    assert client_main(arguments) == 3
    assert capsys.readouterr().err.startswith("client: "), "the name is gone with the program"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from fiddler import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fiddler {__version__}\n"
