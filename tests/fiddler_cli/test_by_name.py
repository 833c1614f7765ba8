"""A model of the hub through the real commands: refused without an answer, and served under its name."""

import re
from pathlib import Path

import pytest

from client import Client
from fiddler.hub.download import Estimate, obtain
from fiddler.hub.names import locate
from fiddler_cli.__main__ import main
from tests.fiddler.hub.conftest import COMMIT, hub, older, published  # noqa: F401 - fixtures
from tests.support.hub import Hub
from tests.support.pairs import start

ESTIMATE = Estimate(memory_bytes=1, free_memory_bytes=2, device_bytes=None, tokens_per_second=None)


def test_serve_asks_before_it_downloads_what_the_dry_run_found(
    hub: Hub,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "acme/tiny", "--device", "cpu"]) == 1
    said = capfd.readouterr().err
    expected = (
        r"^fiddler: acme/tiny needs 2\.\d+ MiB of disk, 1\.\d+ MiB of memory; at most about \d+ tokens/s on this "
        r"machine\. There is no terminal to ask at: add --yes to download it$"
    )
    assert re.search(expected, said, re.M), said
    whole = [path for method, path, span in hub.requests if method == "GET" and span is None and "/resolve/" in path]
    assert whole
    assert not any(path.endswith(".safetensors") for path in whole)


def test_a_pair_serves_the_model_under_its_name(hub: Hub) -> None:  # noqa: F811
    directory = obtain("acme/tiny", estimate=lambda path: ESTIMATE, assume_yes=True, say=lambda line: None)
    assert locate(Path("acme/tiny")) == directory
    hub.requests.clear()
    with start(Path("acme/tiny")) as pair, Client(pair.target) as client:
        assert client.model_info().name == "acme/tiny"
        assert client.generate([3, 4, 5], max_tokens=3, temperature=0).text() is not None
    assert hub.requests == [], "services do not ask the hub"
    assert directory.name == COMMIT
