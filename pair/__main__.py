"""`python -m pair --model DIR`: runs both services, and the HTTP gateway if asked, in one terminal until Ctrl-C."""

import sys
from collections.abc import Sequence
from typing import Annotated

from fiddler.running import interrupts

with interrupts.quiet():
    import typer

    from fiddler import rpc
    from fiddler.command_line import FAILED, UsageError, fail, run, shown_command
    from fiddler.errors import is_user_error
    from pair._errors import PairError
    from pair._models import obtain_model
    from pair.running import SignalledPair, run_until_signalled

_MODULE = "pair"
_DEFAULT_LISTEN = "127.0.0.1:50051"


def launch(
    *,
    model: Annotated[
        str, typer.Option(help="Directory of a Hugging Face checkpoint; ORG/NAME[@REVISION] of the hub; or demo.")
    ],
    listen: Annotated[str, typer.Option(help="Where the GPU service listens.")] = _DEFAULT_LISTEN,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    expert_format: Annotated[
        str, typer.Option(help="auto, int8 or int4: both services serve experts of that format.")
    ] = "auto",
    dense_format: Annotated[
        str, typer.Option(help="What linear layers outside the experts are kept in: auto, bfloat16, int8 or int4.")
    ] = "auto",
    gpu_metrics_port: Annotated[int, typer.Option(help="Port of the GPU service's /metrics.")] = 9100,
    cpu_metrics_port: Annotated[int, typer.Option(help="Port of the CPU expert service's /metrics.")] = 9101,
    http: Annotated[bool, typer.Option("--http", help="Also start the HTTP gateway: OpenAI's API and a page.")] = False,
    http_listen: Annotated[str, typer.Option(help="Where the HTTP gateway listens.")] = "127.0.0.1:8000",
    yes: Annotated[bool, typer.Option("--yes", help="Download the model without a question.")] = False,
) -> int:
    """Runs both services on this host until Ctrl-C. Start the services one by one to use all of their settings."""
    listen = _checked("--listen", listen)
    http_address = _checked("--http-listen", http_listen) if http else None
    weights = ("--dtype", dtype, "--expert-format", expert_format)
    gpu_arguments = ("--device", device, "--dense-format", dense_format, *weights)
    try:
        directory = obtain_model(model, module=_MODULE, assume_yes=yes, gpu_arguments=gpu_arguments)
        pair = SignalledPair(
            directory,
            listen=listen,
            metrics_ports=(gpu_metrics_port, cpu_metrics_port),
            gpu_arguments=gpu_arguments,
            cpu_arguments=weights,
            http=http_address,
        )
    except Exception as error:
        if not (is_user_error(error) or isinstance(error, PairError)):
            raise
        return fail(_MODULE, str(error), FAILED)
    page = [f"the page is http://{http_listen}, OpenAI's API http://{http_listen}/v1"] if http else []
    return run_until_signalled(
        pair,
        module=_MODULE,
        starting=f"starting both services on {directory}; a large model takes minutes to read",
        serving=[hint(pair.target), *page],
    )


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
