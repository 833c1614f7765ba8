"""Interpreters of later versions than the one that runs the tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "FIDDLER_TEST_PYTHONS"
"""Interpreters, between colons, of environments in which this project's dependencies are installed, PyTorch too."""
_MINORS = range(sys.version_info.minor + 1, sys.version_info.minor + 9)


def with_dependencies() -> list[str]:
    """Those that the environment variable names."""
    return [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]


def found() -> dict[str, str]:
    """One interpreter for each later version that is on this machine, by "3.12"."""
    by_version: dict[str, str] = {}
    for path in _candidates():
        by_version.setdefault(_version(path), path)
    return {f"3.{minor}": by_version[f"3.{minor}"] for minor in _MINORS if f"3.{minor}" in by_version}


def dependencies_of(python: str) -> str:
    """The directory in which an environment's packages are."""
    code = "import pathlib, typer; print(pathlib.Path(typer.__file__).parents[1])"
    return subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _candidates() -> Iterator[str]:
    yield from with_dependencies()
    for minor in _MINORS:
        if path := shutil.which(f"python3.{minor}"):
            yield path
    home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in _MINORS:
        yield from map(str, sorted(home.glob(f"versions/3.{minor}.*/bin/python")))


def _version(path: str) -> str:
    """Of an interpreter; empty if it does not run, as pyenv's stand-ins of versions that are not chosen."""
    command = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
