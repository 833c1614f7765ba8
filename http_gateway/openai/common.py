"""The fields that chats and text completions share."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from http_gateway.openai.fields import Body, Int32, Seed, TokenId, one_or_list, text_or_object, unsupported

if TYPE_CHECKING:
    Stop = str | list[str]
    JsonSchema = str | dict[str, Any]
    NoBeams: TypeAlias = Any
    NoTemplate: TypeAlias = Any
    OnlyOne: TypeAlias = Any
    Unsupported: TypeAlias = Any
else:
    Stop = one_or_list(str, list[str])
    JsonSchema = text_or_object(str, dict[str, Any])
    NoBeams = unsupported(why="beam search is not offered over HTTP; the gRPC API has it")
    NoTemplate = unsupported(why="only the model's own chat template is run")
    OnlyOne = unsupported(1, 1.0, why="beam search is not offered over HTTP; the gRPC API has it")
    Unsupported = unsupported()


def _token_id_keys(biases: dict[str, float]) -> dict[str, float]:
    for key in biases:
        if not (key.isascii() and key.isdigit() and int(key) < 2**32):
            raise ValueError(f"each key must be a token id, got {key[:40]!r}")
    return biases


def _minus_one_or_positive(value: int) -> int:
    if value == 0 or value < -1:
        raise ValueError(f"must be -1 or at least 1, got {value}")
    return value


class StreamOptions(Body):
    """What a stream contains besides the answer."""

    include_usage: bool | None = None
    """A last chunk with the numbers of tokens."""
    continuous_usage_stats: bool | None = None
    """The numbers of tokens so far in every chunk."""
    include_prompt_progress: bool | None = None
    """How much of the prompt is computed, before the first token: chunks without choices, with `prompt_progress`."""


class JsonSchemaFormat(Body):
    """A schema with its name."""

    name: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Body):
    """The form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """With the type json_object: the schema of the object, as some servers take it."""

    @model_validator(mode="after")
    def _schema_is_given(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError('"json_schema" must be given with the type "json_schema"')
        if self.schema_ is not None and self.type != "json_object":
            raise ValueError('"schema" is for the type "json_object" only')
        return self


class StructuredOutputs(Body):
    """The form that the answer must have, as vLLM's clients ask for it. Exactly one is given."""

    json_: Annotated[JsonSchema | None, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class GenerationBody(Body):
    """The fields of chats and text completions. A field that is missing or null takes the GPU service's default."""

    model: str | None = None
    """The served model's name. Missing: the served model."""
    max_tokens: Int32 | None = None
    n: Int32 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], AfterValidator(_token_id_keys)] | None = None
    user: str | None = None
    """Ignored."""
    response_format: ResponseFormat | None = None

    top_k: Annotated[Int32, Field(ge=-1)] | None = None
    """Draw only from the k likeliest tokens; 0 or -1 draws from all."""
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int32 | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[Int32, AfterValidator(_minus_one_or_positive)] | None = None
    """Use only so many of the prompt's last tokens; -1: as many as fit."""
    priority: Int32 | None = None
    """Requests of a lower number start first, as in vLLM."""
    return_tokens_as_token_ids: bool | None = None
    """Log probabilities name tokens as "token_id:123"."""
    guided_json: JsonSchema | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None

    use_beam_search: NoBeams = None
    length_penalty: OnlyOne = None
    chat_template: NoTemplate = None
    allowed_token_ids: Unsupported = None
    bad_words: Unsupported = None
    logits_processors: Unsupported = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: may be given only with stream")
        return self
