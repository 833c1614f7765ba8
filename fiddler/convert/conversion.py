"""Converts a checkpoint: a directory appears under the target's name whole, or not at all."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from fiddler import cgroup
from fiddler.checkpoint import Checkpoint, CheckpointError
from fiddler.checkpoint.json_file import read_json
from fiddler.checkpoint.safetensors_index import INDEX_FILE
from fiddler.convert.config_json import converted_config
from fiddler.convert.errors import ConversionError, SpaceError
from fiddler.convert.plan import Plan, make_plan
from fiddler.convert.recipe import SHARD_BYTES, Recipe
from fiddler.convert.source import CONFIG_FILE, RECORD_FILE, identity, side_files
from fiddler.convert.verification import verify
from fiddler.convert.workspace import Workspace, workspace, write_json
from fiddler.convert.writing import full_disk_reported, write_shard
from fiddler.sizes import format_bytes

_RESERVE_BYTES: Final = 16 * 2**20
"""Left free on the disk."""


class Reporter:
    """Is told how a conversion goes; a subclass shows it. Each method may raise StoppedError, which ends it."""

    def waiting(self, target: Path) -> None:
        """Another process makes the same target; this one waits for it."""

    def started(self, source: Checkpoint, plan: Plan, kept_bytes: int) -> None:
        """It begins, or goes on after an interruption.

        Args:
            source: What is converted.
            plan: What is written.
            kept_bytes: Of the source, what an earlier start has converted already.
        """

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """So many bytes of the source are converted. It is called at least once for each matrix."""

    def check_stop(self) -> None:
        """Is called while another process is waited for."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A checkpoint that is to be converted, and where to."""

    source: Checkpoint
    target: Path
    recipe: Recipe
    shard_bytes: int = SHARD_BYTES
    """About the size of the files that are written."""
    threads: int | None = None
    """That compute; None: one for each CPU that this process may use, within its quota."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this conversion from others; see `source.identity`."""
        return identity(self.source, self.recipe)

    def plan(self) -> Plan:
        """What is written.

        Raises:
            ConversionError: The checkpoint cannot be converted.
        """
        return make_plan(self.source, self.recipe, self.shard_bytes)

    def is_done(self) -> bool:
        """Whether the target is the result of this conversion."""
        try:
            record = read_json(self.target / RECORD_FILE, CheckpointError)
        except CheckpointError:
            return False
        return record.get("identity") == self.identity

    def run(self, reporter: Reporter | None = None) -> bool:
        """Makes the target unless it is there.

        Returns:
            Whether this call has made it.

        Raises:
            ConversionError: The checkpoint cannot be converted, the target is something else, or cannot be written.
            SpaceError: There is too little space.
            StoppedError: The reporter raised it. What is written so far is continued by the next call.
        """
        reporter = reporter or Reporter()
        if self.is_done():
            return False
        _check_is_free(self.target, self.source)
        plan = self.plan()
        due = self.identity
        layout = hashlib.sha256(b"".join(shard.header for shard in plan.shards)).hexdigest()
        locked = workspace(
            self.target,
            {"identity": due, "layout": layout},
            is_done=self.is_done,
            on_wait=partial(reporter.waiting, self.target),
            check_stop=reporter.check_stop,
        )
        with full_disk_reported(self.target.parent), locked as space:
            if space is None:
                return False
            self._write(space, plan, reporter)
            if self.identity != due:
                raise ConversionError(f"{self.source.directory} was changed while it was converted.")
            verify(space.path, self.source, plan)
            space.publish()
        return True

    def _write(self, space: Workspace, plan: Plan, reporter: Reporter) -> None:
        missing = [shard for shard in plan.shards if not space.has(shard.name, shard.num_bytes)]
        _check_space(space.path, sum(shard.num_bytes for shard in missing))
        done_bytes = plan.source_bytes - sum(shard.source_bytes for shard in missing)
        reporter.started(self.source, plan, done_bytes)

        def progress(num_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += num_bytes
            reporter.progress(done_bytes, plan.source_bytes)

        pool = ThreadPoolExecutor(self.threads or cgroup.usable_cpus(), thread_name_prefix="convert")
        try:
            for shard in missing:
                write_shard(space.path / shard.name, shard, self.source, pool, progress)
                space.finish(shard.name, shard.num_bytes)
        finally:
            pool.shutdown(cancel_futures=True)
        copy_side_files(self.source.directory, space.path)
        if len(plan.shards) > 1:
            write_json(space.path / INDEX_FILE, index_of(plan))
        write_json(space.path / CONFIG_FILE, converted_config(self.source.config, plan))


def convert(source: Path, target: Path, recipe: Recipe, reporter: Reporter | None = None) -> None:
    """Writes a checkpoint in 8 or 4 bits, in the format of compressed-tensors.

    An interrupted conversion is continued. It may be running in several processes: one converts, the others wait.

    Args:
        source: The directory of a Hugging Face checkpoint.
        target: The directory to make; if it is there already, it must be empty or the result of the same conversion.
        recipe: What is made.
        reporter: Is told how it goes.

    Raises:
        CheckpointError: The source cannot be read.
        ConversionError, SpaceError, StoppedError: See Conversion.run.
    """
    with closing(Checkpoint.open(source)) as checkpoint:
        Conversion(checkpoint, Path(target), recipe).run(reporter)


def copy_side_files(source: Path, target: Path) -> None:
    """Copies what belongs to a checkpoint beside its weights, if it is not there yet; each file whole or not at all."""
    for name in side_files(source):
        data = (source / name).read_bytes()
        copy = target / name
        if copy.is_file() and copy.read_bytes() == data:
            continue
        copy.parent.mkdir(exist_ok=True)
        unfinished = copy.with_name(f"{copy.name}.unfinished")
        unfinished.write_bytes(data)
        unfinished.rename(copy)


def free_bytes(directory: Path) -> int:
    """Free space on the disk of a directory, or of the first of its parents that is there."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def index_of(plan: Plan) -> dict[str, Any]:
    """The content of model.safetensors.index.json, which several files need."""
    weight_map = {target.name: shard.name for shard in plan.shards for target in shard.targets}
    return {
        "metadata": {"total_size": sum(item.num_bytes for item in plan.items)},
        "weight_map": dict(sorted(weight_map.items())),
    }


def _check_is_free(target: Path, source: Checkpoint) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise ConversionError(
            f"{target} is not empty, and not the result of this conversion of {source.directory}: choose another "
            "directory, or remove it."
        )
    if os.path.lexists(target) and not target.is_dir():
        raise ConversionError(f"{target} is not a directory.")


def _check_space(directory: Path, num_bytes: int) -> None:
    free = free_bytes(directory)
    if num_bytes and num_bytes + _RESERVE_BYTES > free:
        raise SpaceError(
            f"{directory}: {format_bytes(num_bytes)} are to be written, and {format_bytes(free)} are free on its disk: "
            "make room, or choose a directory on another disk."
        )
