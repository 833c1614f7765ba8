"""`python -m pair --model DIR`: runs both services, and the HTTP gateway if asked, in one terminal until Ctrl-C."""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from typing_extensions import override

from fiddler import rpc
from fiddler.command_line import DONE, FAILED, UsageError, fail, run
from pair._errors import PairError
from pair._processes import Pair

_MODULE = "pair"
_POLL_SECONDS = 0.5


class _SignalledError(Exception):
    """A signal asked the pair to stop."""


class _SignalledPair(Pair):
    """A pair that a signal stops at its next check.

    An exception from the signal handler itself could strike between the start of a child and its registration, and
    would leave that child running.
    """

    _is_signalled = False

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """Asks the pair to stop."""
        self._is_signalled = True

    @override
    def check(self) -> None:
        if self._is_signalled:
            raise _SignalledError
        super().check()


def launch(
    *,
    model: Annotated[Path, typer.Option(help="Directory of a Hugging Face checkpoint.")],
    listen: Annotated[str, typer.Option(help="Where the GPU service listens.")] = "127.0.0.1:50051",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    gpu_metrics_port: Annotated[int, typer.Option(help="Port of the GPU service's /metrics.")] = 9100,
    cpu_metrics_port: Annotated[int, typer.Option(help="Port of the CPU expert service's /metrics.")] = 9101,
    http: Annotated[bool, typer.Option("--http", help="Also start the HTTP gateway: OpenAI's API and a page.")] = False,
    http_listen: Annotated[str, typer.Option(help="Where the HTTP gateway listens.")] = "127.0.0.1:8000",
) -> int:
    """Runs both services on this host until Ctrl-C. Start the services one by one to use all of their settings."""
    try:
        pair = _SignalledPair(
            model,
            listen=_checked("--listen", listen),
            metrics_ports=(gpu_metrics_port, cpu_metrics_port),
            gpu_arguments=("--device", device, "--dtype", dtype),
            cpu_arguments=("--dtype", dtype),
            http=_checked("--http-listen", http_listen) if http else None,
        )
    except PairError as error:
        return fail(_MODULE, str(error), FAILED)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pair.handle_signal)
    try:
        with pair:
            print(f'pair: serving on {pair.target}; try: python -m client "Once upon a time"', file=sys.stderr)
            if http:
                print(f"pair: the page is http://{http_listen}, OpenAI's API http://{http_listen}/v1", file=sys.stderr)
            while True:
                pair.check()
                time.sleep(_POLL_SECONDS)
    except PairError as error:
        return fail(_MODULE, str(error), FAILED)
    except _SignalledError:
        return DONE


def _checked(flag: str, address: str) -> str:
    try:
        return rpc.check_address(address)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    return run(launch, arguments, module=_MODULE)


if __name__ == "__main__":
    sys.exit(main())
