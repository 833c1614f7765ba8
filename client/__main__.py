"""The command line: `python -m client "prompt"` prints the text as it comes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from client._cli.exit_status import DONE, FAILED, INTERRUPTED, USAGE, exit_status
from client._errors import ClientError

_EPILOG = (
    "Exit status: 0 done, also where whoever read the output has left; 1 the server or the output failed; "
    "2 wrong usage or request; 3 nothing serves there; 4 the server is busy; 5 the timeout passed; "
    "6 the server wants a token, or another one; 130 interrupted."
)

# the error that covers every misuse of an option or argument: typer exports only this child of it
_USAGE_ERROR: Any = typer.BadParameter.__base__

# rich would draw boxes that no script reads, and takes a third of a second to come
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _option(help: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, show_default=False, **settings)


@app.command(epilog=_EPILOG)
def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")
    ] = None,
    target: Annotated[str, typer.Option(help="Where the server listens: HOST:PORT or unix:PATH.")] = "127.0.0.1:50051",
    chat: Annotated[bool, _option("Talk with the model; PROMPT, if there is one, is said first.", "--chat")] = False,
    system: Annotated[str | None, _option("With --chat: what the model is told before all else.")] = None,
    max_tokens: Annotated[int | None, _option("The most tokens to generate.")] = None,
    min_tokens: Annotated[int | None, _option("Tokens before which nothing but the most ends it.")] = None,
    temperature: Annotated[float | None, _option("0 takes the likeliest token, above 0 draws.")] = None,
    top_k: Annotated[int | None, _option("Draw from the k likeliest tokens only; 0: from all.")] = None,
    top_p: Annotated[float | None, _option("Draw from the likeliest tokens of this probability.")] = None,
    min_p: Annotated[float | None, _option("Leave out tokens less likely than this times the likeliest.")] = None,
    typical_p: Annotated[float | None, _option("Locally typical sampling.")] = None,
    seed: Annotated[int | None, _option("The seed of the random numbers.")] = None,
    repetition_penalty: Annotated[float | None, _option("Above 1: repeat less, of prompt and output.")] = None,
    frequency_penalty: Annotated[float | None, _option("Above 0: repeat less, by how often it was.")] = None,
    presence_penalty: Annotated[float | None, _option("Above 0: repeat less, whether it was.")] = None,
    logit_bias: Annotated[
        list[str] | None, _option("Add BIAS to a token's logit; may be repeated.", metavar="ID=BIAS")
    ] = None,
    stop: Annotated[list[str] | None, _option("A text to end before; may be repeated.", metavar="TEXT")] = None,
    include_stop_in_output: Annotated[bool, _option("End after the stop text instead.", "--include-stop")] = False,
    stop_token_ids: Annotated[
        list[int] | None, _option("A token id to end at; may be repeated.", "--stop-token-id", metavar="ID")
    ] = None,
    ignore_eos: Annotated[bool, _option("Do not end at the model's end-of-sequence.", "--ignore-eos")] = False,
    n: Annotated[int | None, _option("How many texts to sample.", "-n")] = None,
    num_beams: Annotated[int | None, _option("Search with this many beams instead of sampling.")] = None,
    length_penalty: Annotated[float | None, _option("Above 0: longer beams score better.")] = None,
    early_stopping: Annotated[str | None, _option("When to end the search: true, false or never.")] = None,
    num_return_sequences: Annotated[int | None, _option("How many of the best beams to print.")] = None,
    stream_best: Annotated[bool, _option("Show the best beam so far.", "--stream-best")] = False,
    logprobs: Annotated[int | None, _option("Log probabilities, and of this many alternatives (--json).")] = None,
    prompt_logprobs: Annotated[int | None, _option("The same of the prompt (--json).")] = None,
    echo: Annotated[bool, _option("Print the prompt before its continuation.", "--echo")] = False,
    priority: Annotated[int | None, _option("Higher ones are begun first.")] = None,
    request_id: Annotated[str | None, _option("A name for the request, for --abort.")] = None,
    forced_bos_token_id: Annotated[
        int | None, _option("The first token that an encoder-decoder model makes.", metavar="ID")
    ] = None,
    timeout: Annotated[float | None, _option("The most seconds that it may take.")] = None,
    json: Annotated[bool, _option("Print each message received as a line of JSON.", "--json")] = False,
    retry_busy: Annotated[bool, _option("Where the server is busy, ask again when it says.", "--retry")] = False,
    tls: Annotated[bool, _option("Use TLS and believe the public authorities.", "--tls")] = False,
    tls_ca: Annotated[Path | None, _option("Use TLS and believe these authorities, PEM.")] = None,
    tls_cert: Annotated[Path | None, _option("The certificate to show the server, PEM.")] = None,
    tls_key: Annotated[Path | None, _option("Its private key, PEM.")] = None,
    tls_server_name: Annotated[str | None, _option("The name that the server's certificate is for.")] = None,
    token_file: Annotated[
        Path | None, _option("File whose first line is the token to present; or set FIDDLER_TOKEN.")
    ] = None,
    info: Annotated[bool, _option("Print what the server and its model are, as JSON, instead.", "--info")] = False,
    abort: Annotated[str | None, _option("End the request of that name instead.", metavar="REQUEST_ID")] = None,
) -> int:
    """Sends a prompt to the GPU service and prints what it generates."""
    if prompt is None and not (chat or info or abort is not None):
        raise _USAGE_ERROR("Missing argument 'PROMPT'")
    # gRPC takes longer to import than --help may take
    from client._cli.commands import run

    try:
        return DONE if run(context.params) else FAILED
    except ClientError as error:
        return _fail(error.message, exit_status(error))


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
