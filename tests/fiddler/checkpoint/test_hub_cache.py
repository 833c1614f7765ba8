"""The Hugging Face cache: a repository is served by its snapshot, under the model's name."""

import os
import shutil
from pathlib import Path

import pytest

from fiddler.checkpoint import Checkpoint, errors
from fiddler.checkpoint.hub_cache import name_of, snapshot_of
from gpu_service.models.families import refusal
from tests.support import checkpoints
from tests.support.tampering import edit_config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("mixtral", tmp_path_factory.mktemp("model"))


@pytest.fixture
def repository(model: Path, tmp_path: Path) -> Path:
    """With two snapshots, of which the first is newer on the disk; their files are links into blobs/."""
    repository = tmp_path / "models--acme--tiny--moe"
    (repository / "blobs").mkdir(parents=True)
    for age, revision in enumerate(("0123abc", "4567def")):
        snapshot = repository / "snapshots" / revision
        snapshot.mkdir(parents=True)
        for path in model.iterdir():
            shutil.copy(path, repository / "blobs" / f"{revision}-{path.name}")
            (snapshot / path.name).symlink_to(f"../../blobs/{revision}-{path.name}")
        os.utime(snapshot, (1e9 - age, 1e9 - age))
    return repository


def test_a_snapshot_is_called_by_its_models_name(repository: Path) -> None:
    checkpoint = Checkpoint.open(repository / "snapshots" / "4567def")
    assert checkpoint.name == "acme/tiny--moe"
    assert checkpoint.directory.name == "4567def"


def test_a_repository_is_served_by_its_newest_snapshot(repository: Path) -> None:
    for given in (repository, repository / "snapshots"):
        checkpoint = Checkpoint.open(given)
        assert (checkpoint.name, checkpoint.directory.name) == ("acme/tiny--moe", "0123abc")


def test_refs_main_says_which(repository: Path) -> None:
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("4567def\n")
    assert snapshot_of(repository).name == "4567def"
    (repository / "snapshots" / "4567def" / "config.json").unlink()
    assert snapshot_of(repository).name == "0123abc", "the other is not complete"
    (repository / "snapshots" / "0123abc" / "config.json").unlink()
    with pytest.raises(errors.DirectoryError, match=r"snapshots holds no snapshot with a config\.json: download"):
        Checkpoint.open(repository)


def test_a_repository_may_have_another_name(repository: Path) -> None:
    assert Checkpoint.open(repository.rename(repository.with_name("mounted"))).name == "mounted"


def test_a_refused_family_is_found_there(repository: Path) -> None:
    assert refusal(repository) is None
    edit_config(snapshot_of(repository), model_type="step3p7")
    said = refusal(repository)
    assert said is not None
    assert "model_type: step3p7 is refused" in said


def test_other_directories_are_called_by_their_own_names(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(model)
    assert snapshot_of(link) == link
    assert name_of(link) == Checkpoint.open(link).name == model.name
    assert name_of(tmp_path / "snapshots" / "x") == "x"
    assert name_of(tmp_path / "models--gpt2" / "snapshots" / "x") == "gpt2"
