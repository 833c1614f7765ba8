"""The options of a connection and of a generation, each with its type and its meaning.

The clients' signatures, the requests and the flags of the command line are all derived from these classes: a new option
is one field here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Annotated, Any, Literal, Required, TypedDict, get_args, get_type_hints


@dataclass(frozen=True, slots=True)
class Option:
    """What an option means.

    Attributes:
        help: The meaning, in words that suit both Python and --help.
        field: The path of the request's field that the option sets, if it has another name than the option,
            e.g. "beam_search.stop".
        default: What applies without the option, in words.
    """

    help: str
    field: str | None = None
    default: str | None = None

    @property
    def text(self) -> str:
        """The meaning and the default."""
        return self.help if self.default is None else f"{self.help} Default: {self.default}."


def options_of(kind: type) -> dict[str, tuple[Any, Option]]:
    """The type and the description of each option of one of the classes below, in order."""
    return {name: get_args(hint)[:2] for name, hint in get_type_hints(kind, include_extras=True).items()}


class TlsOptions(TypedDict, total=False):
    """How a connection is encrypted. Each of these options turns TLS on."""

    tls: Annotated[bool, Option("Use TLS and trust the public certificate authorities.")]
    tls_ca: Annotated[
        str | PathLike[str] | None, Option("Use TLS and trust the certificate authorities in this PEM file instead.")
    ]
    tls_cert: Annotated[
        str | PathLike[str] | None, Option("PEM file with the client's certificate, for servers that ask for one.")
    ]
    tls_key: Annotated[str | PathLike[str] | None, Option("PEM file with the private key of the client's certificate.")]
    tls_server_name: Annotated[
        str | None, Option("The name that the server's certificate must carry, if it differs from the target's.")
    ]


class ConnectionOptions(TlsOptions, total=False):
    """How to connect."""

    token: Annotated[
        str | None,
        Option(
            "The bearer token to present. It is sent only with TLS, over the loopback interface or over a Unix socket."
        ),
    ]
    max_message_bytes: Annotated[int, Option("The largest message to send or accept, in bytes.", default="64 MiB")]
    keepalive_seconds: Annotated[
        float,
        Option(
            "Seconds between pings of a connection that has calls but no traffic. Default: 330. A server closes a "
            "connection that is pinged more often than every 300 seconds, unless it is configured to allow that."
        ),
    ]
    wait_for_ready: Annotated[
        bool,
        Option(
            "Wait, within the call's timeout, for a server that cannot be reached. "
            "Default: False, which raises UnavailableError instead."
        ),
    ]
    retry_unavailable: Annotated[
        bool,
        Option(
            "Retry a call that finds the server unavailable, up to three times within a second; "
            "a generation only until its first message arrives. Default: True."
        ),
    ]
    retry_busy: Annotated[
        bool,
        Option(
            "Retry a generation that a busy server refuses, when the server says and as often as it takes, "
            "within the call's timeout. Default: False."
        ),
    ]


class ChatMessage(TypedDict, total=False):
    """One message of a conversation. A role is required.

    Attributes:
        role: Who speaks, by the name that the model's chat template uses: usually "system", "user", "assistant" or
            "tool".
        content: The text, or its parts: texts, or dicts {"type": "text", "text": ...}. None counts as no text.
        reasoning: The reasoning before an assistant's content.
        tool_calls: The functions that an assistant's message calls: dicts of "id", "name" and "arguments", which is a
            dict or the text of a JSON object. OpenAI's {"id": ..., "function": {"name": ..., "arguments": ...}} will do
            as well.
        tool_call_id: In a message of the role "tool": the id of the call that it answers.
        name: The name of the speaker, or of the function that a tool's message holds the result of.
    """

    role: Required[str]
    content: str | Sequence[str | Mapping[str, object]] | None
    reasoning: str | None
    tool_calls: Sequence[Mapping[str, object]] | None
    tool_call_id: str | None
    name: str | None


class GenerateOptions(TypedDict, total=False):
    """How to generate. An option that is missing or None takes the server's or the model's default.

    Valid ranges and defaults are documented in protos/fiddler/v1/generation.proto.
    """

    max_tokens: Annotated[int | None, Option("The most tokens to generate.", default="as many as fit into the context")]
    min_tokens: Annotated[
        int | None,
        Option("Generate at least this many tokens, unless max_tokens ends the generation first.", default="0"),
    ]
    temperature: Annotated[
        float | None, Option("0 always takes the likeliest token; above 0 draws one.", default="the model's, else 0")
    ]
    top_k: Annotated[
        int | None, Option("Draw only from the k likeliest tokens; 0 draws from all.", default="the model's, else 0")
    ]
    top_p: Annotated[
        float | None,
        Option(
            "Draw only from the smallest set of tokens whose probabilities sum to this or more.",
            default="the model's, else 1",
        ),
    ]
    min_p: Annotated[
        float | None,
        Option(
            "Leave out tokens less likely than this fraction of the likeliest token's probability.",
            default="the model's, else 0",
        ),
    ]
    typical_p: Annotated[
        float | None,
        Option(
            "Locally typical sampling: draw only from the most typical tokens of this probability.",
            default="the model's, else 1",
        ),
    ]
    seed: Annotated[int | None, Option("The seed of the request's random numbers.", default="different each time")]
    repetition_penalty: Annotated[
        float | None,
        Option("Above 1 makes tokens of the prompt and of the output less likely.", default="the model's, else 1"),
    ]
    frequency_penalty: Annotated[
        float | None, Option("Subtract this from a token's logit for each time that it was generated.", default="0")
    ]
    presence_penalty: Annotated[
        float | None, Option("Subtract this from a token's logit once it was generated.", default="0")
    ]
    logit_bias: Annotated[Mapping[int, float] | None, Option("Add a bias to the logit of a token id.")]
    stop: Annotated[str | Sequence[str] | None, Option("End the generation before this text.")]
    include_stop_in_output: Annotated[bool | None, Option("End the output after the stop text, not before it.")]
    stop_token_ids: Annotated[
        Sequence[int] | None,
        Option("End the generation at this token id, as at the model's own end-of-sequence tokens."),
    ]
    ignore_eos: Annotated[bool | None, Option("Do not end the generation at the model's end-of-sequence tokens.")]
    n: Annotated[int | None, Option("How many generations to sample independently.", default="1")]
    num_beams: Annotated[
        int | None, Option("Search with this many beams instead of sampling.", default="no beam search")
    ]
    length_penalty: Annotated[
        float | None,
        Option(
            "Divide a beam's score by the number of its tokens to this power; above 0 favours longer beams.",
            default="1",
        ),
    ]
    early_stopping: Annotated[
        bool | Literal["never"] | None,
        Option(
            "When to end the beam search, as in transformers: true, false or never.",
            field="beam_search.stop",
            default="false",
        ),
    ]
    num_return_sequences: Annotated[int | None, Option("How many of the best beams to return.", default="1")]
    stream_best: Annotated[bool | None, Option("Stream the best beam so far.")]
    logprobs: Annotated[
        int | None,
        Option("Return the log probability of each generated token and of this many alternatives.", default="none"),
    ]
    prompt_logprobs: Annotated[int | None, Option("Return the same for the tokens of the prompt.", default="none")]
    echo: Annotated[bool | None, Option("Return the prompt before its continuation.")]
    priority: Annotated[int | None, Option("Requests of higher priority start first.", default="0")]
    request_id: Annotated[
        str | None, Option("A name for the request, by which it can be aborted.", default="the server chooses one")
    ]
    forced_bos_token_id: Annotated[
        int | None,
        Option("The first token that an encoder-decoder model generates, such as the language to translate to."),
    ]
    chat_template: Annotated[
        str | None,
        Option(
            "In a chat: the name of the chat template, one of chat_templates of the model's information.",
            field="chat.template",
            default="the first of the model",
        ),
    ]
    skip_special_tokens: Annotated[bool | None, Option("Leave special tokens out of the text.", default="true")]
    truncate_prompt: Annotated[
        int | None,
        Option("Use only the last so many tokens of the prompt; 0 uses as many as the context has room for."),
    ]
    chunk_usage: Annotated[bool | None, Option("Return the numbers of tokens so far with each chunk.")]
    prompt_progress: Annotated[bool | None, Option("Stream how far the prompt is computed.")]
    json_schema: Annotated[
        str | Mapping[str, object] | None, Option("The output must be JSON that this JSON schema describes.")
    ]
    json_object: Annotated[bool | None, Option("The output must be a JSON object.")]
    regex: Annotated[str | None, Option("The output must match this regular expression as a whole.")]
    grammar: Annotated[str | None, Option("The output must follow this grammar, in llguidance's form of Lark.")]
    choice: Annotated[Sequence[str] | None, Option("The output must be one of these texts.", field="choice.texts")]
    timeout: Annotated[float | None, Option("The most seconds that the call may take.", default="none")]


class ToolOptions(TypedDict, total=False):
    """Which functions the model may call, and what else its chat template is told.

    Attributes:
        tools: Dicts of "name", "description" and "parameters", a JSON schema as a dict or as text. OpenAI's
            {"type": "function", "function": {...}} will do as well. With "strict": True the arguments of its calls are
            what "parameters" describes, if the model's calls can be told from other text.
        tool_choice: "auto", "none", "required", or {"name": ...} of the function to call, also in OpenAI's form.
        parallel_tool_calls: Whether an answer may have several calls.
        template_arguments: Further arguments of the chat template, such as {"enable_thinking": False}, or their JSON.
    """

    tools: Annotated[Sequence[Mapping[str, object]] | None, Option("The functions that the model may call.")]
    tool_choice: Annotated[
        str | Mapping[str, object] | None,
        Option(
            "Whether the model must call a function: auto, none, required, or the name of the function.", default="auto"
        ),
    ]
    parallel_tool_calls: Annotated[bool | None, Option("Let an answer call several functions. Default: True.")]
    template_arguments: Annotated[
        Mapping[str, object] | str | None, Option("Further arguments of the chat template, a JSON object.")
    ]


class ChatOptions(GenerateOptions, ToolOptions, total=False):
    """How to answer a chat."""

    continue_final_message: Annotated[
        bool | None, Option("Continue the last message, the assistant's, instead of beginning another.")
    ]
