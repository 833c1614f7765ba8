"""The commands in the pages: README's run on the demo model where they can; of the others, the program reads the flags.

Every command is either run here, or read by its program's own parser, or another project's; WHY_NOT_RUN says why a
command is not run.
"""

import importlib.util
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import cpu_expert_service.settings
import gpu_service.profile.settings
import gpu_service.settings
import http_gateway.settings
from client.__main__ import generate_app
from client.__main__ import main as client_main
from client.top.__main__ import app as top_app
from fiddler.command_line import application
from fiddler_cli.__main__ import main as fiddler_main
from fiddler_cli.commands import SUBCOMMANDS
from pair import Pair
from pair.__main__ import launch
from tests.support.pages import hand_written, text_of
from tests.support.pairs import DEMO, WarmPair

HISTORY = ("CHANGELOG.md", "docs/experiments.md", "docs/decisions/")
"""What these say was so when it was written."""
PAGES = [*(page for page in hand_written() if not page.startswith(HISTORY)), "deploy/kubernetes/README.md"]
README = "README.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SETTINGS: dict[str, Any] = {
    "gpu_service": gpu_service.settings.Settings,
    "gpu_service.profile": gpu_service.profile.settings.Settings,
    "cpu_expert_service": cpu_expert_service.settings.Settings,
    "http_gateway": http_gateway.settings.Settings,
}
APPLICATIONS = {"client": generate_app, "client.top": top_app, "pair": application(launch)}
WHY_NOT_RUN = {
    "fiddler serve": "serves until a signal; tests/fiddler_cli/test_wheel.py serves the demo with it",
    "fiddler doctor": "tests/fiddler_cli/test_wheel.py runs it",
    "fiddler bench": "tests/fiddler_cli/test_wheel.py runs it; as it is written here it takes minutes",
    "fiddler inspect": "starts a process for seconds; tests/fiddler_cli/test_by_name.py does so",
    "fiddler top": "needs a terminal; tests/end_to_end/test_top.py has one",
    "client.top": "needs a terminal; tests/end_to_end/test_top.py has one",
    "cpu_expert_service": "serves until a signal; every pair of the tests starts it",
    "gpu_service": "serves until a signal; every pair of the tests starts it",
    "gpu_service.profile": "tests/gpu_service/profile counts on prompts",
    "gpu_service.models": "tests/gpu_service/models/test_command.py runs it",
    "http_gateway": "serves until a signal; tests/pair/test_pair.py starts it",
    "pair": "serves until a signal; tests/pair/test_pair.py starts it",
    "client --tls-ca": "needs a server with TLS; tests/end_to_end/test_access.py calls one",
    "benchmarks": "takes minutes",
    "build": "tests/fiddler_cli/test_wheel.py builds the wheel",
}
"""By the beginning of a command."""
OTHERS = {
    "pip": "asks a package index",
    "hf": "asks the hub",
    "docker": "needs an engine: make compose-test",
    "smg": "another project's: make interop",
    "kubectl": "needs a cluster: make kubernetes-test",
    "helm": "needs a cluster: make kubernetes-test",
    "make": "tests/docs/test_names.py knows its targets",
    "buf": "make lint runs it",
    "pre-commit": "installs a hook",
    "auditwheel": "needs a manylinux image",
    **dict.fromkeys(("useradd", "install", "cp", "systemctl", "python3"), "changes the machine, as root"),
    **dict.fromkeys(("echo", "printf", "head", "umask", "openssl", "rm"), "the shell's, or run with the block"),
}
"""Programs that are not this project's, and why they are not run."""


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    words: tuple[str, ...]
    stdin: str = ""

    @property
    def program(self) -> str:
        """Its own name: "fiddler serve", a module after `python -m`, or another program."""
        first, *rest = self.words
        if first == "fiddler":
            return f"fiddler {rest[0]}"
        return rest[1] if Path(first).name == "python" and rest[:1] == ["-m"] else Path(first).name

    @property
    def arguments(self) -> list[str]:
        """What follows the program, with values where the page has placeholders."""
        given = self.words[2:] if self.words[0] == "fiddler" else self.words[3:]
        filled = {"MODEL": ["demo"], "OUT": ["/tmp/out"], "...": []}
        return [word for part in given for word in filled.get(part, [part])]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def _blocks(page: str) -> list[str]:
    """The blocks that a shell runs: those without a language whose first line is a command."""
    blocks = re.findall(_BLOCK, text_of(page))
    return [block for language, block in blocks if not language and re.match(r"[(a-zA-Z.][\w./=@-]*[ \n]", block)]


def _commands(page: str, text: str) -> Iterator[Command]:
    """The simple commands of some lines of shell; assignments and redirections are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        before: Command | None = None
        for word in [*lexer, ";"]:
            if not re.fullmatch(r"[|&;()]+", word):
                words.append(word)
                continue
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if ">" in words:
                del words[words.index(">") :]
            if words:
                spoken = " ".join(before.words[1:]) if before and before.words[0] == "echo" else ""
                before = Command(page, tuple(words), spoken)
                yield before
            words = []


def _everything() -> list[Command]:
    found = [command for page in PAGES for block in _blocks(page) for command in _commands(page, block)]
    for page in PAGES:
        for span in re.findall(r"`([^`]+)`", _BLOCK.sub("", text_of(page)).replace("\n", " ")):
            if re.match(r"([A-Z_]+=\S+ )?(python -m |fiddler (?!-)\w+ )", span):
                found += _commands(page, span)
    return sorted({command.words: command for command in reversed(found)}.values(), key=str)  # the first of each


COMMANDS = _everything()
OURS = [command for command in COMMANDS if command.program not in OTHERS]


def _reason(command: Command) -> str | None:
    """The longest beginning of the command that has a reason why it is not run; None if it is run."""
    text = " ".join([command.program, *(word for word in command.arguments if word == "--tls-ca")])
    starts = [start for start in WHY_NOT_RUN if re.match(rf"{re.escape(start)}(?![\w-])", text)]
    return max(starts, key=len, default=None)


def _parser(program: str) -> Any:
    """The program's own parser, as Typer makes it."""
    if program.startswith("fiddler "):
        return SUBCOMMANDS[program.removeprefix("fiddler ")].load()
    if program in APPLICATIONS:
        return typer.main.get_command(APPLICATIONS[program])
    module = importlib.import_module(program)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{program}.__main__")
    return typer.main.get_command(application(module.main))


def test_pages_have_commands() -> None:
    assert len([command for command in COMMANDS if command.page == README]) > 50
    assert len({command.page for command in COMMANDS}) > 5
    assert len({command.program for command in OURS}) > 30


@pytest.mark.parametrize("command", [command for command in OURS if command.arguments], ids=str)
def test_the_program_takes_the_arguments(command: Command) -> None:
    if command.program in SETTINGS:
        model = [] if "--model" in command.arguments or "--target" in command.arguments else ["--model", "demo"]
        SETTINGS[command.program].load([*command.arguments, *model])
    elif command.program != "build":
        _parser(command.program).make_context(command.program, command.arguments)


def test_programs_exist() -> None:
    names = {command.program for command in OURS} - {"build"}
    of_fiddler = {name for name in names if name.startswith("fiddler ")}
    assert of_fiddler <= {f"fiddler {name}" for name in SUBCOMMANDS}
    assert [name for name in sorted(names - of_fiddler) if importlib.util.find_spec(name) is None] == []


def test_a_reason_is_given_for_each_command_that_is_not_run_and_for_no_other() -> None:
    assert {_reason(command) for command in OURS} - {None} == WHY_NOT_RUN.keys()
    assert {command.program for command in COMMANDS} & OTHERS.keys() == OTHERS.keys()


@pytest.fixture(scope="module")
def demo() -> Iterator[Pair]:
    with WarmPair(DEMO, gpu_arguments=("--device", "cpu")) as pair:
        yield pair


RUN = [command for command in OURS if _reason(command) is None and (command.arguments or command.words[0] == "fiddler")]
"""Not a program that is only named, such as `python -m client`."""


@pytest.mark.parametrize("command", RUN, ids=str)
def test_the_command_runs(
    command: Command, demo: Pair, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(command.stdin.encode())))
    is_caller = command.program in ("client", "fiddler generate", "fiddler chat")
    target = ["--target", demo.target] if is_caller else []
    if is_caller and "--max-tokens" not in command.words:
        target += ["--max-tokens", "8"]  # of the 256 that one gets
    if command.program.startswith("fiddler "):
        status = fiddler_main([*command.words[1:], *target])
    else:
        assert command.program == "client"
        status = client_main([*command.arguments, *target])
    output, error = capfd.readouterr()
    assert status == 0, error
    assert output.strip() or "chat" in " ".join(command.words)


def test_readmes_python_runs(demo: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """The first part, which calls a server without TLS; all of it is Python."""
    blocks = [block for language, block in _BLOCK.findall(text_of(README)) if language == "python"]
    for block in blocks:
        compile(block, README, "exec")
    (block,) = [block for block in blocks if "Client(" in block]
    first = block.partition('\nwith Client("localhost')[0]
    exec(compile(first.replace("127.0.0.1:50051", demo.target), README, "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) > 10


def test_readmes_certificate_and_tokens_are_made(tmp_path: Path) -> None:
    (block,) = [block for block in _blocks(README) if "openssl req" in block]
    lines = block.partition(".venv/bin/python")[0]
    subprocess.run(["bash", "-ec", lines], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "tokens").stat().st_mode & 0o077 == 0
    assert len((tmp_path / "tokens").read_text().strip()) == 64
    assert "BEGIN CERTIFICATE" in (tmp_path / "server.pem").read_text()
    assert (tmp_path / "server.key").is_file()
