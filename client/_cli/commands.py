"""What the command line does, from its options as they were given."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client._cli.chat import chat
from client._cli.output import output_that_may_end
from client._cli.printing import print_generation, read_prompt
from client._options import ConnectionOptions, GenerateOptions
from client._statuses import invalid
from client.client import Client

TOKEN_VARIABLE = "FIDDLER_TOKEN"
_EARLY_STOPPING = {"true": True, "false": False}


def run(options: Mapping[str, Any]) -> bool:
    """Does what the options ask for.

    Args:
        options: By name: those of GenerateOptions and ConnectionOptions, and of the command line's own.

    Returns:
        Whether there is nothing to complain of.

    Raises:
        ClientError: It failed.
        OSError: The output cannot be written.
    """
    prompt = options["prompt"]
    generation_options = _generation_options(options)
    if options["chat"]:
        _check_chat(generation_options)
    with Client(options["target"], **_connection_options(options)) as client, output_that_may_end():
        if options["info"]:
            _print_info(client, options["timeout"])
        elif options["abort"] is not None:
            return _abort(client, options["abort"], options["timeout"])
        elif options["chat"]:
            opening = None if prompt is None else read_prompt(prompt)
            chat(client, opening, options["system"], generation_options, options["json"])
        else:
            with client.generate(read_prompt(prompt), **generation_options) as generation:
                print_generation(generation, as_json=options["json"])
    return True


def _generation_options(options: Mapping[str, Any]) -> GenerateOptions:
    given: dict[str, Any] = {name: options[name] for name in GenerateOptions.__annotations__}
    # what was not asked for is not said: the server's and the model's own values apply; 0 was asked for
    given = {name: value for name, value in given.items() if value is not None and value is not False and value != []}
    if "early_stopping" in given:
        given["early_stopping"] = _EARLY_STOPPING.get(given["early_stopping"], given["early_stopping"])
    if "logit_bias" in given:
        given["logit_bias"] = dict(map(_parse_bias, given["logit_bias"]))
    return given  # type: ignore[return-value]


def _connection_options(options: Mapping[str, Any]) -> ConnectionOptions:
    given = {name: options[name] for name in ConnectionOptions.__annotations__ if name in options}
    return {**given, "token": _read_token(options["token_file"])}  # type: ignore[typeddict-item]


def _check_chat(options: GenerateOptions) -> None:
    several = {"-n": options.get("n"), "--num-return-sequences": options.get("num_return_sequences")}
    wrong = [flag for flag, number in several.items() if number not in (None, 1)]
    if wrong or options.get("echo"):
        raise invalid((wrong or ["--echo"])[0], "is not for --chat, which prints one answer at a time and no more")


def _parse_bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise invalid("--logit-bias", f"must be ID=BIAS, e.g. 17=-100, got {text!r}") from None


def _read_token(path: Path | None) -> str | None:
    """The token in the file, or in the environment where there is no file. It is no option, which others could see."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise invalid("--token-file", f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise invalid("--token-file", f"{path} is no text") from None
    token = next((line for line in lines if line and not line.startswith("#")), None)
    if token is None:
        raise invalid("--token-file", f"{path} holds no token")
    return token


def _print_info(client: Client, timeout: float | None) -> None:
    model, server = client.model_info(timeout=timeout), client.server_info(timeout=timeout)
    print(json.dumps({"model": dataclasses.asdict(model)}))
    print(json.dumps({"server": dataclasses.asdict(server)}), flush=True)


def _abort(client: Client, request_id: str, timeout: float | None) -> bool:
    aborted = client.abort(request_id, timeout=timeout)
    if not aborted:
        print(f"client: no request {request_id} is under way", file=sys.stderr)
    return aborted
