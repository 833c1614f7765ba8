"""The layout of the Hugging Face hub's cache: models--ORG--NAME/snapshots/REVISION with links into blobs/."""

from pathlib import Path
from typing import Final

from fiddler.checkpoint.errors import DirectoryError

_REPOSITORY: Final = "models--"
_SNAPSHOTS: Final = "snapshots"


def snapshot_of(directory: Path) -> Path:
    """The folder that holds a model's files: for a repository of the cache its snapshot, else the folder itself.

    A repository is served by the snapshot that refs/main names, or by the newest one if that is not there.

    Raises:
        DirectoryError: The repository has no snapshot with a config.json.
        OSError: A folder cannot be read.
    """
    if directory.name == _SNAPSHOTS and directory.parent.name.startswith(_REPOSITORY):
        directory = directory.parent
    snapshots = directory / _SNAPSHOTS
    if (directory / "config.json").exists() or not snapshots.is_dir():
        return directory
    complete = [each for each in snapshots.iterdir() if (each / "config.json").is_file()]
    if not complete:
        raise DirectoryError(f"{snapshots} holds no snapshot with a config.json: download the model again.")
    main = _main_revision(directory)
    return next((each for each in complete if each.name == main), None) or max(
        complete, key=lambda each: (each.stat().st_mtime, each.name)
    )


def name_of(directory: Path) -> str:
    """A model's name for people: ORG/NAME within the cache, else the folder's."""
    directory = directory.resolve()
    repository = directory.parents[1] if directory.parent.name == _SNAPSHOTS else directory
    if repository.name.startswith(_REPOSITORY):
        return repository.name.removeprefix(_REPOSITORY).replace("--", "/", 1)
    # a repository that is mounted under another name
    return repository.name if (repository / "blobs").is_dir() else directory.name


def _main_revision(repository: Path) -> str | None:
    try:
        return (repository / "refs" / "main").read_text(errors="replace").strip()
    except OSError:
        return None
