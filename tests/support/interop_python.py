"""Runs programs of tests/interop/python in their environment, which `make interop` makes."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "interop" / "python"
PYTHON = FOLDER / ".venv" / "bin" / "python"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_PROXY": "*"}
needs_environment = pytest.mark.skipif(not PYTHON.exists(), reason="tests/interop/python/.venv: run `make interop`")


def run(*arguments: str, timeout_seconds: float = 300) -> str:
    """The output of a program, which must succeed."""
    done = subprocess.run(
        [str(PYTHON), *arguments],
        cwd=FOLDER,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def result(script: str, url: str, case: str) -> Any:
    """What a client found in one case."""
    return json.loads(run(script, f"{url}/v1", case).splitlines()[-1])
