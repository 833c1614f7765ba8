"""Conversions that are killed, stopped or run twice, on disks that are full or read-only: nothing half is ever seen."""

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from fiddler.checkpoint import Checkpoint
from fiddler.convert import conversion as conversion_module
from fiddler.convert.conversion import Conversion, Reporter
from fiddler.convert.errors import ConversionError, SpaceError, StoppedError, UnwritableError
from fiddler.convert.plan import Plan
from fiddler.convert.recipe import Recipe
from tests.support import checkpoints
from tests.support.warm_processes import WarmProcess

SHARD_BYTES = 40_000
KILLS = 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(
        "mixtral", tmp_path_factory.mktemp("model") / "source", hidden_size=128, intermediate_size=256
    )


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a conversion that nothing interrupted."""
    target = tmp_path_factory.mktemp("whole") / "result"
    with opened(source) as checkpoint:
        assert Conversion(checkpoint, target, Recipe("int4"), SHARD_BYTES).run()
    return files_of(target)


@pytest.fixture
def checkpoint(source: Path) -> Iterator[Checkpoint]:
    with opened(source) as checkpoint:
        yield checkpoint


def opened(source: Path) -> Any:
    return closing(Checkpoint.open(source))


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


class Stopping(Reporter):
    """Raises an error once some bytes are converted, and remembers what it is told."""

    def __init__(self, after_bytes: int, error: type[Exception] = StoppedError) -> None:
        self.kept_bytes = -1
        self._left = after_bytes
        self._error = error

    @override
    def started(self, source: Checkpoint, plan: Plan, kept_bytes: int) -> None:
        self.kept_bytes = kept_bytes
        self._left += kept_bytes

    @override
    def progress(self, done_bytes: int, total_bytes: int) -> None:
        assert done_bytes <= total_bytes
        if done_bytes >= self._left:
            raise self._error


def test_a_conversion_killed_at_random_moments_is_continued_and_never_half_visible(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "result"
    arguments = ("fiddler.convert", str(source), str(target), "--shard-bytes", str(SHARD_BYTES))
    with open(os.devnull, "wb") as log:
        for _ in range(2):  # the first starts the fork server, too
            began = time.monotonic()
            assert WarmProcess(arguments, stderr=log).wait(60) == 0
            duration = time.monotonic() - began
            assert files_of(target) == whole
            shutil.rmtree(target)
        moments = random.Random(7)
        continued = killed = 0
        for _ in range(KILLS):
            before = {name for name in whole if name.endswith("rs") and (partial(target) / name).exists()}
            process = WarmProcess(arguments, stderr=log)
            time.sleep(moments.uniform(0, duration))
            process.kill()
            killed += process.wait(60) != 0
            continued += len(before) > 0
            if target.exists():
                assert files_of(target) == whole
                shutil.rmtree(target)
            else:
                assert all((partial(target) / name).exists() for name in before)
        assert WarmProcess(arguments, stderr=log).wait(60) == 0
    assert killed > 0
    assert continued > 0
    assert files_of(target) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_what_was_finished_is_kept(checkpoint: Checkpoint, whole: dict[str, bytes], tmp_path: Path) -> None:
    target = tmp_path / "result"
    conversion = Conversion(checkpoint, target, Recipe("int4"), SHARD_BYTES)
    half = Stopping(conversion.plan().source_bytes // 2)
    with pytest.raises(StoppedError):
        conversion.run(half)
    assert not target.exists()
    finished = {path.name: path.stat().st_mtime_ns for path in partial(target).glob("*.safetensors")}
    assert finished
    again = Stopping(1 << 60)
    assert conversion.run(again)
    assert again.kept_bytes > 0.3 * conversion.plan().source_bytes
    assert files_of(target) == whole
    assert all((target / name).stat().st_mtime_ns == time for name, time in finished.items())
    assert not conversion.run()


def test_what_another_recipe_or_source_left_is_not_used(
    checkpoint: Checkpoint, whole: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "result"
    other = Conversion(checkpoint, target, Recipe("int8"), SHARD_BYTES)
    with pytest.raises(StoppedError):
        other.run(Stopping(other.plan().source_bytes // 2))
    again = Stopping(1 << 60)
    assert Conversion(checkpoint, target, Recipe("int4"), SHARD_BYTES).run(again)
    assert again.kept_bytes == 0
    assert files_of(target) == whole


def test_a_file_that_was_cut_off_is_written_again(
    checkpoint: Checkpoint, whole: dict[str, bytes], tmp_path: Path
) -> None:
    target = tmp_path / "result"
    conversion = Conversion(checkpoint, target, Recipe("int4"), SHARD_BYTES)
    with pytest.raises(StoppedError):
        conversion.run(Stopping(conversion.plan().source_bytes // 2))
    file = next(partial(target).glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)
    assert conversion.run()
    assert files_of(target) == whole


class First(Reporter):
    """Holds a conversion up until another one waits for it."""

    def __init__(self) -> None:
        self.has_started, self.may_go_on = threading.Event(), threading.Event()

    @override
    def progress(self, done_bytes: int, total_bytes: int) -> None:
        self.has_started.set()
        assert self.may_go_on.wait(30)


class Second(Reporter):
    """Lets the first one go on once it waits for it."""

    def __init__(self, first: First) -> None:
        self.waited_for: list[Path] = []
        self._first = first

    @override
    def waiting(self, target: Path) -> None:
        self.waited_for.append(target)
        self._first.may_go_on.set()


def test_of_two_at_once_one_converts_and_the_other_waits(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    target = tmp_path / "result"
    first = First()
    second = Second(first)
    made: dict[str, bool] = {}

    def run(name: str, reporter: Reporter) -> None:
        with opened(source) as checkpoint:
            made[name] = Conversion(checkpoint, target, Recipe("int4"), SHARD_BYTES).run(reporter)

    threads = [threading.Thread(target=run, args=arguments) for arguments in (("first", first), ("second", second))]
    threads[0].start()
    assert first.has_started.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert made == {"first": True, "second": False}
    assert second.waited_for == [target]
    assert files_of(target) == whole
    assert not partial(target).exists()


class Changing(Reporter):
    """Changes the source once the conversion has started."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @override
    def started(self, source: Checkpoint, plan: Plan, kept_bytes: int) -> None:
        os.utime(self._file, (1, 1))


def test_a_source_that_changes_meanwhile_is_noticed(source: Path, tmp_path: Path) -> None:
    changed = tmp_path / "source"
    shutil.copytree(source, changed)
    reporter = Changing(changed / "model.safetensors")
    with opened(changed) as checkpoint, pytest.raises(ConversionError, match="was changed while it was converted"):
        Conversion(checkpoint, tmp_path / "result", Recipe("int4")).run(reporter)
    assert not (tmp_path / "result").exists()


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion_module, "free_bytes", lambda directory: 17 * 2**20)
    with pytest.raises(SpaceError, match=r"KiB are to be written, and 17 MiB are free|MiB are to be written"):
        Conversion(checkpoint, tmp_path / "result", Recipe("int8")).run()
    assert not list(tmp_path.rglob("*.safetensors*"))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_disk_that_fills_up_is_reported_and_what_is_written_is_kept(
    call: str, checkpoint: Checkpoint, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real, calls = tmp_path / "result", getattr(os, call), 0

    def full(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    conversion = Conversion(checkpoint, target, Recipe("int4"), SHARD_BYTES)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(SpaceError, match=r"No space left on device; what is written so far is kept"):
            conversion.run()
    assert not target.exists()
    assert not list(tmp_path.rglob("*.unfinished.unfinished"))
    assert conversion.run()
    assert files_of(target) == whole


def test_a_directory_that_cannot_be_written_to_is_named(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UnwritableError, match=rf"{file}.* cannot be written to: Not a directory"):
        Conversion(checkpoint, file / "result", Recipe("int4")).run()

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UnwritableError, match=r"\.result\.partial cannot be written to: Read-only file system"):
        Conversion(checkpoint, tmp_path / "result", Recipe("int4")).run()


def test_what_the_disk_gives_back_wrong_is_noticed(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, 0

    def damage(file: int) -> None:
        nonlocal calls
        real(file)
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        if path.name.endswith(".safetensors.unfinished"):
            calls += 1
            with path.open("r+b") as opened:
                opened.seek(path.stat().st_size // 2)
                byte = opened.read(1)
                opened.seek(-1, os.SEEK_CUR)
                opened.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(ConversionError, match="is not what was written to it"):
        Conversion(checkpoint, tmp_path / "result", Recipe("int4")).run()
    assert calls == 1
    assert not (tmp_path / "result").exists()
