"""A sharded tiny model on a stand-in for the hub, and an empty cache."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support import checkpoints
from tests.support.hub import Hub, Repository, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"
NOT_NEEDED = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "modeling_tiny.py", "tokenizer_tiny.py")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a sharded model, with others beside them."""
    directory = checkpoints.write("mixtral", tmp_path_factory.mktemp("published"), shards=3, eos_token_id=None)
    checkpoints.write_tokenizer(directory)
    for name in NOT_NEEDED:
        (directory / name).write_text("not needed\n")
    return directory


@pytest.fixture(scope="session")
def older(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same at an older commit, in one file."""
    directory = tmp_path_factory.mktemp("older")
    for path in published.iterdir():
        if not path.name.startswith("model"):
            shutil.copy(path, directory)
    return checkpoints.write("mixtral", directory, eos_token_id=None)


@pytest.fixture
def hub(published: Path, older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serves acme/tiny, with a tag v1, and acme/gated, which wants the token "secret"."""
    commits = {COMMIT: published, OTHER: older}
    tiny = Repository(commits, {"main": COMMIT, "v1": OTHER})
    gated = Repository(commits, {"main": COMMIT}, token="secret")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # huggingface_hub read the environment when it was imported
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    with serving({"acme/tiny": tiny, "acme/gated": gated}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running
