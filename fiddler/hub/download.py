"""Finds a model by its name, or downloads it once the user has agreed to what it takes."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fiddler.command_line import INTERRUPTED, fail
from fiddler.errors import UserError
from fiddler.hub.cache import cache_directory
from fiddler.hub.names import HubName, cached, locate
from fiddler.hub.preview import preview
from fiddler.hub.remote import INDEX, WEIGHTS, RemoteModel, is_offline, look_up, shards_of
from fiddler.sizes import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What serving a model takes on this machine: the dry run's figures."""

    memory_bytes: int
    """Of the host."""
    free_memory_bytes: int
    device_bytes: int | None
    """Of the GPU's memory, without resident experts; None without a GPU."""
    tokens_per_second: float | None
    """The bound for one sequence; None if the configuration does not tell."""

    def __str__(self) -> str:
        parts = [f"{format_bytes(self.memory_bytes)} of memory"]
        if self.device_bytes is not None:
            parts.append(f"{format_bytes(self.device_bytes)} of the GPU's")
        text = " and ".join(parts)
        if (rate := self.tokens_per_second) is not None:
            text += f"; at most about {f'{rate:.2g}' if rate < 100 else f'{rate:.0f}'} tokens/s on this machine"
        if self.memory_bytes > self.free_memory_bytes:
            text += f", and less: only {format_bytes(self.free_memory_bytes)} of memory are free"
        return text


def obtain(model: str, *, estimate: Callable[[Path], Estimate], assume_yes: bool, say: Callable[[str], object]) -> Path:
    """The directory of a model. One that the cache holds whole is taken as it is, without asking the hub.

    Args:
        model: A path, "demo", or ORG/NAME[@REVISION].
        estimate: The dry run on a directory; it raises a UserError if the model cannot be served.
        assume_yes: Whether to download without a question.
        say: Prints a line about what is going on.

    Returns:
        The directory; if `model` is neither a path that exists nor a name, what was given.

    Raises:
        UserError: The model is not there and cannot be downloaded, cannot be served, or the user did not agree.
    """
    name = _missing(model)
    if name is None:
        return locate(Path(model))
    with _interrupt_ends_the_process(name):
        remote, directory = _small_files(name, say)
        with preview(remote, directory) as folder:
            say(f"checking {name} on this machine, without its weights")
            needs = estimate(folder)
        weights = remote.weight_files(directory)
        _check_disk(remote, directory, weights)
        question = f"{name} needs {format_bytes(sum(remote.sizes[path] for path in weights))} of disk, {needs}"
        if not assume_yes:
            _ask(question)
        return remote.download([*remote.small_files, *weights])


@contextmanager
def look_without_weights(model: str, *, say: Callable[[str], object]) -> Iterator[Path]:
    """A directory for a dry run: the model's, or if the cache lacks the model, one without weights for the block.

    Args:
        model: As for `obtain`.
        say: Prints a line about what is going on.

    Raises:
        UserError: The hub refuses.
    """
    name = _missing(model)
    if name is None:
        yield locate(Path(model))
        return
    with _interrupt_ends_the_process(name):
        remote, directory = _small_files(name, say)
        num_bytes = sum(remote.sizes[path] for path in remote.weight_files(directory))
        say(f"{name} is not downloaded; its weights take {format_bytes(num_bytes)} of disk")
        with preview(remote, directory) as folder:
            yield folder


def _missing(model: str) -> HubName | None:
    """The name of a model that the cache lacks or has in part; None for one that is there, and for a path.

    Raises:
        UserError: It is missing, and the hub must not be asked.
    """
    name = None if os.path.lexists(model) else HubName.parse(model)
    if name is None or ((directory := cached(name)) is not None and is_whole(directory)):
        return None
    if is_offline():
        raise UserError(
            f"{name} is not whole in the Hugging Face cache ({cache_directory()}), and HF_HUB_OFFLINE is set: unset it "
            "to download the model, or copy the cache of a machine that has it"
        )
    return name


def _small_files(name: HubName, say: Callable[[str], object]) -> tuple[RemoteModel, Path]:
    """The model on the hub, and the folder of the cache with its small files."""
    say(f"{name} is not whole in the cache; looking at its files on the hub")
    remote = look_up(name)
    return remote, remote.download(remote.small_files)


def is_whole(directory: Path) -> bool:
    """Whether a folder of the cache has a configuration and all files of weights, which are downloaded last."""
    if not (directory / "config.json").is_file():
        return False
    if (directory / WEIGHTS).is_file():
        return True
    shards = shards_of(directory / INDEX)
    return bool(shards) and all((directory / shard).is_file() for shard in shards)


def _check_disk(model: RemoteModel, directory: Path, weights: list[str]) -> None:
    """Refuses a download that the disk has no room for.

    Raises:
        UserError: See above.
    """
    missing = sum(model.sizes[path] for path in weights if not (directory / path).exists())
    free = shutil.disk_usage(directory).free
    if missing > free:
        raise UserError(
            f"{model.name} needs {format_bytes(missing)} more of the disk with {cache_directory()}, and "
            f"{format_bytes(free)} are free: make room, or let HF_HOME name a folder on another disk"
        )


def _ask(question: str) -> None:
    """Asks at the terminal whether to download.

    Raises:
        UserError: The user does not agree, or there is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(f"{question}. There is no terminal to ask at: add --yes to download it")
    print(f"{question}. Download it to {cache_directory()}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was downloaded but its configuration and tokenizer")


@contextmanager
def _interrupt_ends_the_process(name: HubName) -> Iterator[None]:
    """Lets Ctrl-C end the process at once: the threads that download would go on to the ends of their files."""

    def leave(number: int, frame: FrameType | None) -> None:
        print(file=sys.stderr)
        said = f"interrupted; the files of {name} that are whole are kept, and the same command downloads the rest"
        fail("fiddler", said, INTERRUPTED)
        _remove_parts_of_files()
        os._exit(INTERRUPTED)

    previous = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _remove_parts_of_files() -> None:
    """Removes what this process has written of files: huggingface_hub gives every download a file of its own."""
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            file = descriptor.readlink()
            if file.suffix == ".incomplete":
                file.unlink()
