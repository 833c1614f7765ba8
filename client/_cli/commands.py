"""Executes the command line: generates, chats, aborts or prints information."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from client._cli.chat import chat
from client._cli.flags import given
from client._cli.output import output_that_may_end
from client._cli.printing import print_generation, read_prompt
from client._options import ChatOptions, ConnectionOptions, GenerateOptions, TlsOptions, ToolOptions
from client._statuses import invalid
from client.client import Client

TOKEN_VARIABLE = "FIDDLER_TOKEN"


def execute(arguments: Mapping[str, Any]) -> bool:
    """Does what the command line asks for.

    Args:
        arguments: The parsed arguments of client/_cli/app.py, by name.

    Returns:
        Whether it succeeded. If not, the reason has been printed.

    Raises:
        ClientError: A call failed.
        OSError: The output cannot be written.
    """
    prompt, as_json, timeout = arguments["prompt"], arguments["as_json"], arguments["timeout"]
    options = cast(GenerateOptions, given(GenerateOptions, arguments))
    tools = given(ToolOptions, arguments)
    if arguments["chat"]:
        _check_chat_options(options)
    elif tools:
        raise invalid(f"--{min(tools).replace('_', '-')}", "must be given with --chat")
    with Client(arguments["target"], **_connection_options(arguments)) as client, output_that_may_end():
        if arguments["info"]:
            _print_info(client, timeout)
        elif arguments["abort"]:
            return _abort(client, arguments["abort"], timeout)
        elif arguments["chat"]:
            opening = None if prompt is None else read_prompt(prompt)
            chat_options = cast(ChatOptions, {**options, **tools})
            chat(client, opening=opening, system=arguments["system"], options=chat_options, as_json=as_json)
        else:
            with client.generate(read_prompt(prompt), **options) as generation:
                print_generation(generation, as_json=as_json)
    return True


def _connection_options(arguments: Mapping[str, Any]) -> ConnectionOptions:
    options = cast(ConnectionOptions, given(TlsOptions, arguments))
    options["retry_busy"] = arguments["retry_busy"]
    options["token"] = _read_token(arguments["token_file"])
    return options


def _check_chat_options(options: GenerateOptions) -> None:
    counts = {"-n": options.get("n"), "--num-return-sequences": options.get("num_return_sequences")}
    refused = [flag for flag, count in counts.items() if count not in (None, 1)]
    if options.get("echo"):
        refused.append("--echo")
    if refused:
        raise invalid(refused[0], "cannot be combined with --chat, which prints a single answer at a time")


def _read_token(path: Path | None) -> str | None:
    """The token in the file, or without a file in the environment. A flag would show the token to other users."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise invalid("--token-file", f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise invalid("--token-file", f"{path} is not a text file") from None
    token = next((line for line in lines if line and not line.startswith("#")), None)
    if token is None:
        raise invalid("--token-file", f"{path} contains no token")
    return token


def _print_info(client: Client, timeout: float | None) -> None:
    model, server = client.model_info(timeout=timeout), client.server_info(timeout=timeout)
    print(json.dumps({"model": dataclasses.asdict(model)}))
    print(json.dumps({"server": dataclasses.asdict(server)}), flush=True)


def _abort(client: Client, request_ids: Sequence[str], timeout: float | None) -> bool:
    aborted = client.abort_all(request_ids, timeout=timeout)
    missing = [request_id for request_id in request_ids if request_id not in aborted]
    for request_id in missing:
        print(f"client: no request {request_id} is under way", file=sys.stderr)
    return not missing
