"""A client in another language: node, with the descriptors that it gets by reflection."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pair import Pair
from tests.support.interop import PROMPT, SERVICES, assert_a_generation

FOLDER = Path(__file__).parent / "node"
MAX_TOKENS = 8

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules").is_dir(), reason="tests/interop/node is not installed: run `make interop`"
    ),
]


def generate(target: str) -> subprocess.CompletedProcess[str]:
    command = ["node", str(FOLDER / "generate.mjs"), target, PROMPT, str(MAX_TOKENS)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_a_generation_streams_to_a_client_in_another_language(pair: Pair) -> None:
    done = generate(pair.target)
    assert (done.returncode, done.stderr) == (0, "")
    services, *messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert set(services["services"]) >= SERVICES
    assert_a_generation(messages, MAX_TOKENS)


def test_it_says_so_where_nobody_listens() -> None:
    done = generate("127.0.0.1:1")
    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr
