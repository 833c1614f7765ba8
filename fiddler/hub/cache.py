"""The layout of the Hugging Face cache: models--ORG--NAME/snapshots/COMMIT, with links into blobs/, and refs/BRANCH."""

import os
from pathlib import Path
from typing import Final

REPOSITORY: Final = "models--"
"""What the name of a model's folder begins with."""
SNAPSHOTS: Final = "snapshots"


def cache_directory() -> Path:
    """The Hugging Face cache, where huggingface_hub has it: HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME move it."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given is None:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        given = os.path.join(os.environ.get("HF_HOME") or os.path.join(cache, "huggingface"), "hub")
    return Path(os.path.expandvars(given)).expanduser()


def repository_folder(name: str) -> str:
    """The folder of the repository ORG/NAME in the cache."""
    return REPOSITORY + name.replace("/", "--")


def snapshot_at(repository: Path, revision: str) -> Path | None:
    """A repository's snapshot at a revision; None if the cache does not hold it.

    Args:
        repository: Its folder in the cache.
        revision: A branch, a tag or a commit.
    """
    snapshot = repository / SNAPSHOTS / (commit_of(repository, revision) or revision)
    return snapshot if snapshot.is_dir() else None


def commit_of(repository: Path, revision: str) -> str | None:
    """The commit that a branch or a tag names."""
    try:
        return (repository / "refs" / revision).read_text(errors="replace").strip() or None
    except OSError:
        return None
