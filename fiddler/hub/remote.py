"""One model on the Hugging Face hub: which of its files are needed, their sizes, and how they are downloaded.

huggingface_hub does all of it: it finds the token, goes on after a connection broke, keeps the files that are whole,
and shows its progress.
"""

import fnmatch
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fiddler.errors import UserError
from fiddler.hub.cache import cache_directory
from fiddler.hub.names import HubName

if TYPE_CHECKING:
    from huggingface_hub import HfApi, SafetensorsRepoMetadata

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_SMALL: Final = (
    "config.json",
    "generation_config.json",
    "*tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "tekken.json",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
    "adapter_config.json",
    INDEX,
)
"""What is read beside the weights. Code that a repository brings is never run, and so not downloaded."""
_CODE: Final = "*.py"
_NUM_AT_A_TIME: Final = 2
"""Files that are downloaded at a time: what is interrupted in the middle of a file begins that file again."""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model at one commit."""

    name: HubName
    commit: str
    sizes: dict[str, int]
    """Bytes of each file of the repository, by its path."""

    @property
    def small_files(self) -> list[str]:
        """Configurations and tokenizers."""
        return sorted(
            path
            for path in self.sizes
            if any(fnmatch.fnmatchcase(path, each) for each in _SMALL) and not fnmatch.fnmatchcase(path, _CODE)
        )

    def weight_files(self, directory: Path) -> list[str]:
        """The files of weights, as the index says; `directory` holds the small files."""
        if WEIGHTS in self.sizes:
            return [WEIGHTS]
        return [name for name in shards_of(directory / INDEX) if name in self.sizes]

    def download(self, files: Sequence[str]) -> Path:
        """Downloads files of the repository into the cache, those that are not there yet.

        Returns:
            The folder of the model's files in the cache.

        Raises:
            UserError: The hub or the disk refuses.
        """
        from huggingface_hub import snapshot_download

        with _reported(self.name):
            return Path(
                snapshot_download(
                    self.name.repository,
                    revision=self.name.revision,
                    cache_dir=cache_directory(),
                    allow_patterns=[_literally(path) for path in files],
                    endpoint=endpoint(),
                    max_workers=_NUM_AT_A_TIME,
                )
            )

    def headers(self) -> "SafetensorsRepoMetadata":
        """The headers of all files of weights, without the weights.

        Raises:
            UserError: The hub refuses, or a header is damaged.
        """
        with _reported(self.name):
            return _api().get_safetensors_metadata(self.name.repository, revision=self.commit)


def look_up(name: HubName) -> RemoteModel:
    """Asks the hub for a model's commit and files.

    Raises:
        UserError: There is no such model or revision, it is gated, or the hub cannot be reached.
    """
    with _reported(name):
        from huggingface_hub.hf_api import RepoFile

        api = _api()
        commit = api.model_info(name.repository, revision=name.revision).sha
        assert commit is not None
        files = api.list_repo_tree(name.repository, recursive=True, revision=commit)
        return RemoteModel(name, commit, {file.path: file.size for file in files if isinstance(file, RepoFile)})


def shards_of(index: Path) -> list[str]:
    """The files that an index names; empty if it is missing or damaged, which opening the checkpoint reports."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []
    return sorted(name for name in names if isinstance(name, str) and Path(name).name == name)


def endpoint() -> str:
    """The hub's address; HF_ENDPOINT sets another one."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids to ask the hub."""
    given = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return given.upper() in {"1", "ON", "YES", "TRUE"}


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="fiddler")


def _literally(path: str) -> str:
    """A pattern that matches a path only."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)


@contextmanager
def _reported(name: HubName) -> Iterator[None]:
    """Turns what the hub answers into a sentence for the user.

    Raises:
        UserError: The hub refused, could not be reached, or the disk is full.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{name} is gated: accept its terms on its page of the hub, then `hf auth login`, or set HF_TOKEN to a "
            "token of an account that may read it"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: {name.repository} has no revision {name.revision} on {endpoint()}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{endpoint()} has no model {name.repository}, or it is private: check the name; for a private one, "
            "`hf auth login`, or set HF_TOKEN"
        ) from None
    except (errors.SafetensorsParsingError, errors.HFValidationError) as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:
        raise _failure(name, error) from None


def _failure(name: HubName, error: Exception) -> Exception:
    """The error to raise for one that has no cause in the model's name; a fault of this program stays what it is."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return UserError(f"{endpoint()} refuses the token (status {status}): `hf auth login`, or set HF_TOKEN")
        return UserError(f"{endpoint()} answered with status {status} for {name}; try again later")
    if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2") or isinstance(
        error, errors.LocalEntryNotFoundError | ConnectionError | TimeoutError
    ):
        return UserError(
            f"{name} is not whole in the cache ({cache_directory()}), and {endpoint()} cannot be reached or broke off: "
            "check the network, HF_ENDPOINT and HTTPS_PROXY; the same command downloads the rest"
        )
    if isinstance(error, OSError):
        return UserError(
            f"{name} cannot be written to {error.filename or cache_directory()}: {error.strerror or error}"
        )
    return error
