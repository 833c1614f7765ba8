"""The command that starts a module of this project, from wherever its caller is."""

import subprocess
from pathlib import Path

import pytest

from fiddler.running.modules import command_of

ROOT = Path(__file__).parents[3]


def test_what_the_current_directory_holds_takes_no_place_of_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pair", "typer", "queue"):  # one of this project's, one it depends on, one of Python's
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__name__} of the current directory')\n")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(command_of("pair", "--help"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "both services" in done.stdout


def test_a_clone_is_searched_though_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert command_of("pair", "--help")[1:] == ["-m", "pair", "--help"]


def test_a_directory_that_is_gone_is_no_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert command_of("pair")[1:] == ["-P", "-m", "pair"]
