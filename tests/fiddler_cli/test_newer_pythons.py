"""Later versions of Python, as far as they can be tried without PyTorch for them; test_wheel.py tries the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fiddler_checkup.packages import PACKAGES
from tests.support.newer_pythons import VARIABLE, dependencies_of, found

ROOT = Path(__file__).parents[2]
PYTHONS = found()


@pytest.fixture(
    params=[
        *PYTHONS,
        *([] if PYTHONS else [pytest.param("", marks=pytest.mark.skip(f"no later Python is here, nor in {VARIABLE}"))]),
    ]
)
def python(request: pytest.FixtureRequest) -> str:
    """An interpreter."""
    return PYTHONS[request.param]


def test_it_knows_what_the_packages_are_written_in(python: str, tmp_path: Path) -> None:
    assert _check(python, ROOT, *PACKAGES) == (0, "")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "old.py").write_text("import queue\nprint('\\d')\n")
    (tmp_path / "package" / "newer.py").write_text("from imp import *\nfrom json import no_such\nimport queue\n")
    found, troubles = _check(python, tmp_path, "package")
    assert found == 3, troubles
    assert "package/newer.py: ModuleNotFoundError(\"No module named 'imp'\")" in troubles
    assert "package/newer.py: json has no no_such" in troubles
    assert "package/old.py: SyntaxError" in troubles


@pytest.mark.parametrize(("flag", "words"), [("--version", "fiddler 0."), ("--help", "Serve a model: both services")])
def test_the_command_says_what_it_is(python: str, flag: str, words: str) -> None:
    """With the dependencies of the Python that runs this: the command line needs none that is compiled."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), dependencies_of(sys.executable)])}
    done = subprocess.run(
        [python, "-W", "error", "-m", "fiddler_cli", flag], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert words in done.stdout


def _check(python: str, directory: Path, *packages: str) -> tuple[int, str]:
    """How many troubles another Python has with packages, and which."""
    program = str(ROOT / "tests" / "support" / "stdlib_check.py")
    command = [python, program, str(directory), ",".join(sys.stdlib_module_names), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()
