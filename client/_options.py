"""What may be said of a connection and of a generation, by name. Turning it into gRPC's terms is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal, TypedDict


class TlsOptions(TypedDict, total=False):
    """How a connection is encrypted. Each of these asks for TLS.

    Attributes:
        tls: Whether there is TLS; the server's certificate is then checked against the public authorities.
        tls_ca: PEM file of the authorities that are believed instead.
        tls_cert: PEM file of the client's own certificate, where the server wants one.
        tls_key: PEM file of its private key.
        tls_server_name: The name that the server's certificate must be for, where the target is another.
    """

    tls: bool
    tls_ca: str | PathLike[str] | None
    tls_cert: str | PathLike[str] | None
    tls_key: str | PathLike[str] | None
    tls_server_name: str | None


class ConnectionOptions(TlsOptions, total=False):
    """How to connect.

    Attributes:
        token: The bearer token of a server that asks for one. It is sent with TLS, over the loopback interface or over
            a Unix socket, and never else.
        max_message_bytes: The largest message, in bytes, that is sent or taken. 64 MiB unless said.
        keepalive_seconds: How often a connection that has calls but no traffic is tried, every 330 seconds unless said.
            A server hangs up on less than 300 unless it was told to bear it.
        wait_for_ready: Whether a call waits, within its timeout, for a server that cannot be reached, rather than raise
            UnavailableError. It does not unless said.
        retry_unavailable: Whether a call that found the server unavailable is made again, up to three times within a
            second; a generation only while nothing of it has come. It is unless said.
        retry_busy: Whether a generation that the server had no room for is asked for again, as often as it takes and
            as late as the server says, within its timeout. It is not unless said.
    """

    token: str | None
    max_message_bytes: int
    keepalive_seconds: float
    wait_for_ready: bool
    retry_unavailable: bool
    retry_busy: bool


class ChatMessage(TypedDict):
    """One message of a conversation.

    Attributes:
        role: Who speaks, as the model's chat template calls it: "system", "user" or "assistant" for most.
        content: What is said.
    """

    role: str
    content: str


class GenerateOptions(TypedDict, total=False):
    """How to generate. What is not given, or None, is as the server or the model has it; generation.proto says more.

    Attributes:
        max_tokens: The most tokens to generate.
        min_tokens: Tokens that are made before anything but max_tokens may end the generation.
        temperature: 0 takes the likeliest token, above 0 draws.
        top_k: Draw from the k likeliest tokens only; 0: from all.
        top_p: Draw from the smallest set of tokens whose probabilities sum to this or more.
        min_p: Leave out tokens less likely than this times the likeliest.
        typical_p: Locally typical sampling.
        seed: The seed of this request's random numbers, different each time unless said.
        repetition_penalty: Above 1, what the prompt or the output has becomes less likely.
        frequency_penalty: Is subtracted from a token's logit for each time that it was generated.
        presence_penalty: Is subtracted from a token's logit once it was generated.
        logit_bias: Is added to the logits of token ids.
        stop: A text, or several, that ends the generation.
        include_stop_in_output: Whether the text ends with the stop text rather than before it.
        stop_token_ids: Token ids that end the generation, besides the model's own.
        ignore_eos: Whether the model's end-of-sequence tokens end nothing.
        n: How many generations to sample independently.
        num_beams: Search with this many beams instead of sampling.
        length_penalty: Beams' scores are divided by the number of their tokens to this power.
        early_stopping: When the search ends, as in transformers.
        num_return_sequences: How many of the best beams are returned.
        stream_best: Whether the best beam so far is streamed.
        logprobs: Log probabilities of the tokens that are made, and of this many alternatives.
        prompt_logprobs: The same for the prompt's tokens.
        echo: Whether the prompt's tokens and text come first.
        priority: Requests of higher priority are begun first.
        request_id: The request's name, for abort().
        forced_bos_token_id: The first token that an encoder-decoder model makes, such as the language to translate to.
        timeout: The most seconds that all of it may take.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    seed: int | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    include_stop_in_output: bool | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    n: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    num_return_sequences: int | None
    stream_best: bool | None
    logprobs: int | None
    prompt_logprobs: int | None
    echo: bool | None
    priority: int | None
    request_id: str | None
    forced_bos_token_id: int | None
    timeout: float | None
