"""`python -m client.top`: expert routing, speed and health of a running pair, live, from its metrics."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from client._cli.exit_status import DONE, FAILED, INTERRUPTED, exit_status
from client._cli.output import output_that_may_end
from client._errors import ClientError
from client.top.keys import keys
from client.top.maps import CHOICES, Choice
from client.top.monitor import Monitor
from client.top.scrape import Endpoint
from client.top.snapshot import Snapshot
from client.top.view import View

_EPILOG = (
    "Keys: q quits, m shows another choice of maps. Exit status: 0 done; 1 what answers is not the service's /metrics, "
    "or the output failed; 2 wrong usage; 3 nothing serves there; 5 no answer in time; 130 interrupted. A service that "
    "does not answer ends only --once, which prints what the other one says."
)
_NONE = "none"
_WINDOW_SECONDS = 10.0
_MOST_TIMEOUT_SECONDS = 5.0
_KEY_SECONDS = 0.5  # as often, a window of another size is noticed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.gpu == options.cpu == _NONE:
        parser.error("--gpu and --cpu: one of them must be a service")
    try:
        gpu_service = _endpoint("--gpu", "gpu_service", options.gpu)
        cpu_expert_service = _endpoint("--cpu", "cpu_expert_service", options.cpu)
    except ClientError as error:
        return _fail(error.message, exit_status(error))
    every_interval = options.once or options.json
    window_seconds = options.window or (options.interval if every_interval else _WINDOW_SECONDS)
    monitor = Monitor(
        gpu_service,
        cpu_expert_service,
        interval_seconds=options.interval,
        window_seconds=window_seconds,
        half_life_seconds=options.half_life,
        timeout_seconds=min(_MOST_TIMEOUT_SECONDS, max(1.0, options.interval)),
    )
    try:
        with monitor, output_that_may_end():
            return _once(monitor, options) if options.once else _watch(monitor, options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _fail(f"cannot write the output: {error.strerror}", FAILED)
    return DONE


def _once(monitor: Monitor, options: argparse.Namespace) -> int:
    """Prints one sample, with rates over one interval."""
    monitor.sample()
    if len(monitor.errors) < monitor.num_services:
        time.sleep(options.interval)
        snapshot = monitor.sample()
        if len(monitor.errors) < monitor.num_services:
            _print(snapshot, options)
    if not monitor.errors:
        return DONE
    return _fail("; ".join(error.message for error in monitor.errors), exit_status(monitor.errors[0]))


def _watch(monitor: Monitor, options: argparse.Namespace) -> int:
    """Shows one sample after the other until it is stopped."""
    console = Console()
    if options.json or not console.is_terminal or console.is_dumb_terminal:
        while True:
            due = time.monotonic() + options.interval
            _print(monitor.sample(), options)
            time.sleep(max(0.0, due - time.monotonic()))
    choice: Choice = options.maps
    with keys() as key_within, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            due = time.monotonic() + options.interval
            snapshot = monitor.sample()
            while True:
                live.update(View(snapshot, choice, options.half_life, live=True), refresh=True)
                left = due - time.monotonic()
                if left <= 0:
                    break
                key = key_within(min(left, _KEY_SECONDS))
                if key == "q":
                    return DONE
                if key == "m":
                    choice = CHOICES[(CHOICES.index(choice) + 1) % len(CHOICES)]


def _print(snapshot: Snapshot, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(dataclasses.asdict(snapshot)), flush=True)
    else:
        Console().print(View(snapshot, options.maps, options.half_life))


def _endpoint(option: str, service: str, address: str) -> Endpoint | None:
    return None if address == _NONE else Endpoint(option, service, address)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m client.top", description=__doc__, epilog=_EPILOG)
    address = f"URL of its /metrics, or HOST:PORT; {_NONE} leaves it out"
    parser.add_argument("--gpu", default="127.0.0.1:9100", metavar="URL", help=f"the GPU service: {address}")
    parser.add_argument("--cpu", default="127.0.0.1:9101", metavar="URL", help=f"the CPU expert service: {address}")
    parser.add_argument("--interval", type=_seconds, default=2.0, help="seconds between two readings (default: 2)")
    parser.add_argument(
        "--window",
        type=_seconds,
        help=f"seconds that rates and shares are of (default: {_WINDOW_SECONDS:g}; one interval with --once or --json)",
    )
    parser.add_argument(
        "--half-life", type=_seconds, default=60.0, help="seconds after which a selection counts half (default: 60)"
    )
    parser.add_argument("--maps", choices=CHOICES, default="auto", help="which maps are shown (default: auto)")
    parser.add_argument("--once", action="store_true", help="print one sample and end")
    parser.add_argument("--json", action="store_true", help="print each sample as a line of JSON")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"must be from 0.1 to 86400, got {text}")
    return seconds


def _fail(message: str, status: int) -> int:
    print("client.top:", " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
