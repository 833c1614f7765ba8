"""What --expert-format serves: a converted checkpoint in the user's cache, made once for all services of a machine.

A conversion is at KEY/NAME in the folder `directory`: KEY is of the source's files and the recipe, so that another
source or recipe has another place, and NAME is the model's, so that it is served under the same name.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import structlog
from tqdm import tqdm
from typing_extensions import override

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.safetensors_index import INDEX_FILE
from fiddler.checkpoint.views import WeightView
from fiddler.convert.config_json import converted_config
from fiddler.convert.conversion import Conversion, Reporter, copy_side_files, index_of
from fiddler.convert.errors import SpaceError, StoppedError, UnwritableError
from fiddler.convert.plan import Plan
from fiddler.convert.recipe import BITS, SHARD_BYTES, ExpertFormat, Recipe
from fiddler.convert.source import CONFIG_FILE, identity, key_of
from fiddler.convert.workspace import refusals_reported, write_json
from fiddler.hub.cache import repository_folder

FormatOfExperts = Literal["auto"] | ExpertFormat
"""auto: as they are stored."""

_HINT: Final = (
    "The cache is where XDG_CACHE_HOME says; `python -m fiddler.convert` writes to any directory, which --model serves."
)
_REMIND_SECONDS: Final = 30.0
_log = structlog.get_logger(__name__)


def directory() -> Path:
    """Where conversions are."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fiddler" / "converted"


def conversion_of(source: Checkpoint, expert_format: FormatOfExperts) -> Conversion | None:
    """The conversion that gives a checkpoint's experts a format; None if it is served as it is.

    That is so for auto, and if its experts have no more bits already: converting them would only lose.
    """
    if expert_format == "auto":
        return None
    coded_bits = [
        view.coding.code.bits for layer in source.layers if not isinstance(view := layer.experts[0].up, WeightView)
    ]
    if len(coded_bits) == len(source.layers) and max(coded_bits) <= BITS[expert_format]:
        return None
    recipe = Recipe(expert_format)
    name = repository_folder(source.name) if "/" in source.name else source.name
    key = key_of(identity(source, recipe))
    return Conversion(source, directory() / f"{recipe.description}-{key}" / name, recipe, SHARD_BYTES)


def served_model(model: Path, expert_format: FormatOfExperts, is_stopped: Callable[[], bool]) -> Path:
    """The directory to serve: the model's own, or that of its conversion, which is made if it is not there.

    If another process makes it, this one waits. The log says what is done, how far it is, and where the result is.

    Args:
        model: The directory that --model gives.
        expert_format: What --expert-format says.
        is_stopped: Whether the process was asked to end.

    Raises:
        CheckpointError: The model cannot be read.
        ConversionError: It cannot be converted, or the cache cannot be written to.
        StoppedError: The process was asked to end. The next start goes on.
    """
    if expert_format == "auto":
        return model
    source = Checkpoint.open(model)
    try:
        conversion = conversion_of(source, expert_format)
        if conversion is None:
            _log.warning(
                "the experts have no more bits already, so they are served as they are stored",
                model=str(model),
                stored=source.weight_format,
                asked=expert_format,
            )
            return model
        _make(conversion, is_stopped)
        return conversion.target
    finally:
        source.close()


@contextmanager
def preview(conversion: Conversion) -> Iterator[Path]:
    """For the time of a block, the result without its weights: headers, small files, and holes where weights will be.

    A dry run on it gives the answers that the result would give.

    Raises:
        ConversionError: The checkpoint cannot be converted.
    """
    plan = conversion.plan()
    with tempfile.TemporaryDirectory(prefix="fiddler-") as parent:
        folder = Path(parent) / conversion.target.name
        folder.mkdir()
        for shard in plan.shards:
            with (folder / shard.name).open("wb") as file:
                file.write(shard.header)
                file.truncate(shard.num_bytes)
        copy_side_files(conversion.source.directory, folder)
        if len(plan.shards) > 1:
            write_json(folder / INDEX_FILE, index_of(plan))
        write_json(folder / CONFIG_FILE, converted_config(conversion.source.config, plan))
        yield folder


def _make(conversion: Conversion, is_stopped: Callable[[], bool]) -> None:
    began = time.monotonic()
    reporter = _Log(is_stopped)
    try:
        made = conversion.run(reporter)
        if not made:
            # a tokenizer or a template may be another by now
            with refusals_reported(conversion.target):
                copy_side_files(conversion.source.directory, conversion.target)
    except (SpaceError, UnwritableError) as error:
        raise type(error)(f"{error} {_HINT}") from error
    finally:
        reporter.close()
    event = "experts converted" if made else "converted experts found"
    seconds = {"seconds": round(time.monotonic() - began, 1)} if made else {}
    num_bytes = sum(path.stat().st_size for path in conversion.target.iterdir())
    _log.info(event, format=conversion.recipe.experts, directory=str(conversion.target), num_bytes=num_bytes, **seconds)
    if made:
        _tell_of_others(conversion)


def _tell_of_others(conversion: Conversion) -> None:
    """Logs which earlier conversions of a model of that name take space."""
    folder = conversion.target
    prefix = f"{conversion.recipe.description}-"
    others = [
        str(other)
        for other in folder.parents[1].glob(f"{prefix}*/{folder.name}")
        if other != folder and other.parent.name.removeprefix(prefix).isalnum()
    ]
    if others:
        _log.warning(
            "conversions of an earlier state of this model, or of another one of its name, remain; remove them to free "
            "space",
            directories=others,
        )


class _Log(Reporter):
    """Logs how a conversion goes, with a bar on a terminal."""

    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        self._is_stopped = is_stopped
        self._bar: Any = None
        self._said = time.monotonic()

    @override
    def waiting(self, target: Path) -> None:
        _log.info("waiting for another process that converts the experts", directory=str(target))

    @override
    def started(self, source: Checkpoint, plan: Plan, kept_bytes: int) -> None:
        if source.is_coded:
            _log.warning(
                "the model is quantised already; quantising it again loses more than quantising what it was made of",
                model=str(source.directory),
                stored=source.weight_format,
            )
        total = plan.source_bytes
        _log.info(
            "converting experts",
            model=str(source.directory),
            format=plan.recipe.experts,
            from_bytes=total,
            to_bytes=plan.num_bytes,
            done_bytes=kept_bytes,
        )
        self._bar = tqdm(total=total, initial=kept_bytes, desc="converted", unit="B", unit_scale=True, disable=None)

    @override
    def progress(self, done_bytes: int, total_bytes: int) -> None:
        self.check_stop()
        self._bar.update(done_bytes - self._bar.n)
        if self._bar.disable and time.monotonic() - self._said >= _REMIND_SECONDS:
            self._said = time.monotonic()
            _log.info("still converting experts", done_bytes=done_bytes, of_bytes=total_bytes)

    @override
    def check_stop(self) -> None:
        if self._is_stopped():
            raise StoppedError

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
