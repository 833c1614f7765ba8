"""`python -m pair --model DIR`: both services in one terminal, until Ctrl-C."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from pair._processes import Pair, PairError


class _EndedError(Exception):
    """A signal came."""


class _Launched(Pair):
    """A pair that a signal ends at its next check, since anywhere else a child may be born but not yet recorded."""

    _ended = False

    def end_soon(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler."""
        self._ended = True

    def check(self) -> None:
        """See Pair.check."""
        if self._ended:
            raise _EndedError
        super().check()


def main(
    model: Annotated[Path, typer.Option(help="Directory of a Hugging Face checkpoint.")],
    listen: Annotated[str, typer.Option(help="Where the GPU service serves.")] = "127.0.0.1:50051",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    gpu_metrics_port: Annotated[int, typer.Option(help="/metrics of the GPU service.")] = 9100,
    cpu_metrics_port: Annotated[int, typer.Option(help="/metrics of the CPU expert service.")] = 9101,
) -> None:
    """Runs both services on this host until Ctrl-C. For all their settings, start them one by one."""
    pair = _Launched(
        model,
        listen=listen,
        metrics_ports=(gpu_metrics_port, cpu_metrics_port),
        gpu_arguments=("--device", device, "--dtype", dtype),
        cpu_arguments=("--dtype", dtype),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pair.end_soon)
    try:
        with pair:
            print(f'pair: serving on {pair.target}; try: python -m client "Once upon a time"', file=sys.stderr)
            while True:
                pair.check()
                time.sleep(0.5)
    except PairError as error:
        print(f"pair: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except _EndedError:
        pass


if __name__ == "__main__":
    typer.run(main)
