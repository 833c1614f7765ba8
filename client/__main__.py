"""The command line: `python -m client "prompt"` prints the text as it comes."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from client._errors import (
    BusyError,
    ClientError,
    DeadlineError,
    InvalidRequestError,
    UnavailableError,
)

DONE, FAILED, USAGE, UNAVAILABLE, BUSY, DEADLINE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

_EXIT_CODES: dict[type[ClientError], int] = {
    InvalidRequestError: USAGE,
    UnavailableError: UNAVAILABLE,
    BusyError: BUSY,
    DeadlineError: DEADLINE,
}
_EPILOG = (
    "Exit status: 0 done, also where whoever read the output has left; 1 the server or the output failed; "
    "2 wrong usage or request; 3 nothing serves there; 4 the server is busy; 5 the timeout passed; 130 interrupted."
)

# the error that covers every misuse of an option or argument: typer exports only this child of it
_USAGE_ERROR: Any = typer.BadParameter.__base__

# rich would draw boxes that no script reads, and takes a third of a second to come
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog=_EPILOG)
def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")
    ],
    target: Annotated[str, typer.Option(help="Where the server listens: HOST:PORT or unix:PATH.")] = "127.0.0.1:50051",
    max_tokens: Annotated[int | None, typer.Option(help="The most tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token, above 0 draws.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens only; 0: from all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of the random numbers.")] = None,
    stop_token_id: Annotated[
        list[int] | None, typer.Option(metavar="<int>", help="A token id to end at; may be repeated.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="The most seconds that it may take.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print each message received as a line of JSON.")] = False,
) -> int:
    """Sends a prompt to the GPU service and prints what it generates."""
    # gRPC takes longer to import than --help may take
    from client._printing import print_generation, read_prompt
    from client.client import Client

    try:
        with (
            Client(target) as client,
            client.generate(
                read_prompt(prompt),
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                stop_token_ids=stop_token_id or (),
                timeout=timeout,
            ) as generation,
        ):
            print_generation(generation, as_json=json)
    except ClientError as error:
        return _fail(error.message, _EXIT_CODES.get(type(error), FAILED))
    return DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    try:
        status = app(arguments, prog_name="python -m client", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except OSError as error:
        return _fail(f"cannot write the output: {error.strerror}", FAILED)
    except _USAGE_ERROR as error:
        return _fail(f"{error.format_message()} (see --help)", USAGE)
    return int(status or DONE)


def _fail(message: str, status: int) -> int:
    print("client:", " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
