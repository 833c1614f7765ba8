"""`python -m client.top`: expert routing, speed and health of a running pair, live, from its metrics."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fiddler.running import interrupts

with interrupts.quiet():
    import typer
    from rich.console import Console
    from rich.live import Live

    from client._cli.exit_status import exit_status
    from client._cli.output import output_that_may_end
    from client._errors import ClientError
    from client.metrics.monitor import Monitor
    from client.metrics.scrape import Endpoint
    from client.metrics.snapshot import Snapshot
    from client.top.keys import keys
    from client.top.maps import CHOICES, Choice
    from client.top.view import View
    from fiddler.command_line import DONE, FAILED, UsageError, application, fail, run

_MODULE = "client.top"
_EPILOG = (
    "Keys: q quits, m shows the next choice of maps. Exit status: 0 done; 1 an endpoint does not serve the service's "
    "metrics, or the output cannot be written; 2 wrong usage; 3 an endpoint cannot be reached; 5 an endpoint does not "
    "answer in time; 130 interrupted. Only --once ends when a service does not answer, after printing the other one's "
    "figures. SSL_CERT_FILE names the authorities of https URLs, if the system does not know them."
)
_NONE = "none"
_WINDOW_SECONDS = 10.0
_MAX_TIMEOUT_SECONDS = 5.0
_COLUMNS_OF_A_FILE = 160
_REDRAW_SECONDS = 0.5  # how soon a resized terminal is redrawn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """How samples are taken and shown."""

    interval_seconds: float
    half_life_seconds: float
    maps: Choice
    as_json: bool


def _seconds(value: float | None) -> float | None:
    if value is not None and not 0.1 <= value <= 86400:  # refuses nan too
        raise typer.BadParameter(f"must be from 0.1 to 86400, got {value:g}")
    return value


_ADDRESS = f"URL of its /metrics, or HOST:PORT; {_NONE} leaves it out."


def top(
    *,
    gpu: Annotated[str, typer.Option(metavar="URL", help=f"The GPU service: {_ADDRESS}")] = "127.0.0.1:9100",
    cpu: Annotated[str, typer.Option(metavar="URL", help=f"The CPU expert service: {_ADDRESS}")] = "127.0.0.1:9101",
    interval: Annotated[float, typer.Option(callback=_seconds, help="Seconds between two samples.")] = 2.0,
    window: Annotated[
        float | None,
        typer.Option(
            callback=_seconds,
            help="Seconds that rates and shares cover. "
            f"Default: {_WINDOW_SECONDS:g}, or one interval with --once or --json.",
        ),
    ] = None,
    half_life: Annotated[
        float, typer.Option(callback=_seconds, help="Seconds after which a selection counts half in the decayed map.")
    ] = 60.0,
    maps: Annotated[Choice, typer.Option(help="Which maps to show.")] = "auto",
    once: Annotated[bool, typer.Option("--once", help="Print one sample and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each sample as a line of JSON.")] = False,
) -> int:
    """Shows expert routing, speed and health of a running pair, live, from its metrics."""
    if gpu == cpu == _NONE:
        raise UsageError("--gpu and --cpu: one of them must be a service")
    try:
        gpu_service = _endpoint("--gpu", "gpu_service", gpu)
        cpu_expert_service = _endpoint("--cpu", "cpu_expert_service", cpu)
    except ClientError as error:
        return fail(_MODULE, error.message, exit_status(error))
    settings = _Settings(interval_seconds=interval, half_life_seconds=half_life, maps=maps, as_json=as_json)
    monitor = Monitor(
        gpu_service,
        cpu_expert_service,
        interval_seconds=interval,
        window_seconds=window or (interval if once or as_json else _WINDOW_SECONDS),
        half_life_seconds=half_life,
        timeout_seconds=min(_MAX_TIMEOUT_SECONDS, max(1.0, interval)),
    )
    with monitor, output_that_may_end():
        return _once(monitor, settings) if once else _watch(monitor, settings)
    return DONE


app = application(top, epilog=_EPILOG)
"""`fiddler top`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    try:
        return run(top, arguments, module=_MODULE, epilog=_EPILOG)
    except OSError as error:
        return fail(_MODULE, f"cannot write the output: {error.strerror}", FAILED)


def _endpoint(option: str, service: str, address: str) -> Endpoint | None:
    return None if address == _NONE else Endpoint(option, service, address)


def _once(monitor: Monitor, settings: _Settings) -> int:
    """Prints one sample, with rates over one interval."""
    monitor.sample()
    if len(monitor.errors) < monitor.num_services:
        time.sleep(settings.interval_seconds)
        snapshot = monitor.sample()
        if len(monitor.errors) < monitor.num_services:
            _print(snapshot, settings)
    if not monitor.errors:
        return DONE
    return fail(_MODULE, "; ".join(error.message for error in monitor.errors), exit_status(monitor.errors[0]))


def _watch(monitor: Monitor, settings: _Settings) -> int:
    """Shows sample after sample until it is stopped."""
    console = _console()
    if settings.as_json or not console.is_terminal or console.is_dumb_terminal:
        while True:
            due = time.monotonic() + settings.interval_seconds
            _print(monitor.sample(), settings)
            time.sleep(max(0.0, due - time.monotonic()))
    choice = settings.maps
    with keys() as key_within, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            due = time.monotonic() + settings.interval_seconds
            snapshot = monitor.sample()
            while True:
                live.update(
                    View(snapshot, choice=choice, half_life_seconds=settings.half_life_seconds, live=True), refresh=True
                )
                left = due - time.monotonic()
                if left <= 0:
                    break
                key = key_within(min(left, _REDRAW_SECONDS))
                if key == "q":
                    return DONE
                if key == "m":
                    choice = CHOICES[(CHOICES.index(choice) + 1) % len(CHOICES)]


def _console() -> Console:
    """Standard output; a file or a pipe, which has no columns of its own, gets enough for everything."""
    is_terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_terminal else _COLUMNS_OF_A_FILE)


def _print(snapshot: Snapshot, settings: _Settings) -> None:
    if settings.as_json:
        print(json.dumps(dataclasses.asdict(snapshot)), flush=True)
    else:
        _console().print(View(snapshot, choice=settings.maps, half_life_seconds=settings.half_life_seconds))


if __name__ == "__main__":
    sys.exit(main())
