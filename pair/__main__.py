"""`python -m pair --model DIR`: runs both services, and the HTTP gateway if asked, in one terminal until Ctrl-C."""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

from fiddler.running import interrupts

with interrupts.quiet():
    import typer
    from typing_extensions import override

    from fiddler import rpc
    from fiddler.checkpoint.first_look import first_look
    from fiddler.command_line import DONE, FAILED, UsageError, fail, run, shown_command
    from fiddler.errors import is_user_error
    from pair._errors import PairError
    from pair._processes import Pair

_MODULE = "pair"
_DEFAULT_LISTEN = "127.0.0.1:50051"
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
    listen: Annotated[str, typer.Option(help="Where the GPU service listens.")] = _DEFAULT_LISTEN,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    expert_format: Annotated[
        str, typer.Option(help="auto, int8 or int4: both services serve experts of that format.")
    ] = "auto",
    gpu_metrics_port: Annotated[int, typer.Option(help="Port of the GPU service's /metrics.")] = 9100,
    cpu_metrics_port: Annotated[int, typer.Option(help="Port of the CPU expert service's /metrics.")] = 9101,
    http: Annotated[bool, typer.Option("--http", help="Also start the HTTP gateway: OpenAI's API and a page.")] = False,
    http_listen: Annotated[str, typer.Option(help="Where the HTTP gateway listens.")] = "127.0.0.1:8000",
) -> int:
    """Runs both services on this host until Ctrl-C. Start the services one by one to use all of their settings."""
    listen = _checked("--listen", listen)
    http_address = _checked("--http-listen", http_listen) if http else None
    try:
        first_look(model)
        pair = _SignalledPair(
            model,
            listen=listen,
            metrics_ports=(gpu_metrics_port, cpu_metrics_port),
            gpu_arguments=("--device", device, "--dtype", dtype, "--expert-format", expert_format),
            cpu_arguments=("--dtype", dtype, "--expert-format", expert_format),
            http=http_address,
        )
        pair.check_addresses()
    except Exception as error:
        if not (is_user_error(error) or isinstance(error, PairError)):
            raise
        return fail(_MODULE, str(error), FAILED)
    _handle_signals(pair)
    began = time.monotonic()
    print(f"pair: starting both services on {model}; a large model takes minutes to read", file=sys.stderr)
    try:
        with pair:
            print(
                f"pair: serving on {pair.target} after {time.monotonic() - began:.0f} s; {hint(pair.target)}",
                file=sys.stderr,
            )
            if http:
                print(f"pair: the page is http://{http_listen}, OpenAI's API http://{http_listen}/v1", file=sys.stderr)
            while True:
                pair.check()
                time.sleep(_POLL_SECONDS)
    except PairError as error:
        return fail(_MODULE, str(error), FAILED)
    except _SignalledError:
        return DONE


def _handle_signals(pair: _SignalledPair) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pair.handle_signal)
    # a closed terminal stops the pair too, but not if it was started with nohup
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, pair.handle_signal)


def hint(target: str) -> str:
    """A command that calls this pair, to be typed as it is."""
    host, _, port = target.rpartition(":")
    reached = f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]") else target
    where = "" if reached == _DEFAULT_LISTEN else f" --target {reached}"
    return f'try: {shown_command("client")} "Once upon a time"{where}'


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
