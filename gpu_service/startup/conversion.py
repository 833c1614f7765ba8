"""--expert-format: which checkpoint is served, for a start and for the dry run."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fiddler.checkpoint import Checkpoint
from fiddler.convert import cache
from fiddler.convert.conversion import Conversion, free_bytes
from fiddler.running.stopping import Stop
from fiddler.sizes import format_bytes
from gpu_service.settings import Settings


@dataclass(frozen=True, slots=True)
class Converted:
    """What a dry run examines in place of the model."""

    settings: Settings
    """With the directory of the conversion, or of its preview."""
    model: Path
    """The directory of the model itself."""
    note: str | None
    """What the first start would do, or where the conversion is; None if the model is served as it is."""
    bytes_to_write: int
    """What the first start writes; 0 if it writes nothing."""


def converted(settings: Settings) -> Settings:
    """The settings with the directory to serve: that of the model or of its conversion, which is made if need be.

    Meanwhile SIGTERM and SIGINT end it.

    Raises:
        UserError: The model cannot be converted, or the cache cannot be written to.
        StoppedError: A signal asked the process to end.
    """
    if settings.expert_format == "auto":
        return settings
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return _with_model(settings, cache.served_model(settings.model, settings.expert_format, stop.is_set))


@contextmanager
def previewed(settings: Settings) -> Iterator[Converted]:
    """The same for a dry run, which converts nothing: what is not there is stood for by a preview.

    Raises:
        UserError: The model cannot be converted.
    """
    if settings.expert_format == "auto":
        yield Converted(settings, settings.model, None, 0)
        return
    with closing(Checkpoint.open(settings.model)) as source:
        conversion = cache.conversion_of(source, settings.expert_format)
        if conversion is None:
            note = f"none: the experts have no more bits already ({source.weight_format})"
            yield Converted(settings, source.directory, note, 0)
        elif conversion.is_done():
            note = f"{conversion.target} is there"
            yield Converted(_with_model(settings, conversion.target), source.directory, note, 0)
        else:
            with cache.preview(conversion) as folder:
                yield Converted(
                    _with_model(settings, folder), source.directory, _forecast(conversion), conversion.plan().num_bytes
                )


def _with_model(settings: Settings, model: Path) -> Settings:
    return settings.model_copy(update={"model": model})


def _forecast(conversion: Conversion) -> str:
    plan = conversion.plan()
    free = free_bytes(conversion.target)
    short = ": too little" if plan.num_bytes > free else ""
    again = "; the source is quantised already, which loses more" if conversion.source.is_coded else ""
    return (
        f"the first start writes {format_bytes(plan.num_bytes)} to {conversion.target}, where {format_bytes(free)} are "
        f"free{short}; meanwhile it takes {format_bytes(plan.memory_bytes)} of memory{again}"
    )
