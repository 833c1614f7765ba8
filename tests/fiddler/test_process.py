"""A service's process: defaults that the environment overrides."""

import pytest

from fiddler import process

NAMES = ("GRPC_EXPERIMENTS", "GRPC_VERBOSITY", "OMP_WAIT_POLICY")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_unset_gets_a_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    process.prepare()
    assert environment[name]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_environment_says_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {name: "mine"}
    monkeypatch.setattr("os.environ", environment)
    process.prepare()
    assert environment[name] == "mine"
