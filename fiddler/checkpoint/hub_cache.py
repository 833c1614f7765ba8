"""Which folder of the Hugging Face cache a model is served from, and the name that it is served under."""

from pathlib import Path

from fiddler.checkpoint.errors import DirectoryError
from fiddler.hub.cache import REPOSITORY, SNAPSHOTS, commit_of


def snapshot_of(directory: Path) -> Path:
    """The folder that holds a model's files: for a repository of the cache its snapshot, else the folder itself.

    A repository is served by the snapshot that refs/main names, or by the newest one if that is not there.

    Raises:
        DirectoryError: The repository has no snapshot with a config.json.
        OSError: A folder cannot be read.
    """
    if directory.name == SNAPSHOTS and directory.parent.name.startswith(REPOSITORY):
        directory = directory.parent
    snapshots = directory / SNAPSHOTS
    if (directory / "config.json").exists() or not snapshots.is_dir():
        return directory
    complete = [each for each in snapshots.iterdir() if (each / "config.json").is_file()]
    if not complete:
        raise DirectoryError(f"{snapshots} holds no snapshot with a config.json: download the model again.")
    main = commit_of(directory, "main")
    return next((each for each in complete if each.name == main), None) or max(
        complete, key=lambda each: (each.stat().st_mtime, each.name)
    )


def name_of(directory: Path) -> str:
    """A model's name for people: ORG/NAME within the cache, else the folder's."""
    directory = directory.resolve()
    repository = directory.parents[1] if directory.parent.name == SNAPSHOTS else directory
    if repository.name.startswith(REPOSITORY):
        return repository.name.removeprefix(REPOSITORY).replace("--", "/", 1)
    # a repository that is mounted under another name
    return repository.name if (repository / "blobs").is_dir() else directory.name
