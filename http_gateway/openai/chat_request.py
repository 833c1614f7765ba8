"""The form of a request to /v1/chat/completions."""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from http_gateway.openai.common import GenerationBody
from http_gateway.openai.fields import Body, Int32, one_or_list, text_or_object, unsupported

if TYPE_CHECKING:
    NoFunctions: TypeAlias = Any
    NoAudio: TypeAlias = Any
    TextOnly: TypeAlias = Any
    Unsupported: TypeAlias = Any
else:
    NoFunctions = unsupported(why="is not supported; use tools")
    NoAudio = unsupported(why="only text is supported")
    TextOnly = unsupported(["text"], why='only ["text"] is supported')
    Unsupported = unsupported()


class ContentPart(Body):
    """A part of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None

    @field_validator("type")
    @classmethod
    def _is_text(cls, value: str) -> str:
        if value not in ("text", "refusal"):
            raise ValueError(f"only parts of the type 'text' are supported, got {value[:40]!r}")
        return value


class FunctionCall(Body):
    """The function that a message calls."""

    name: str
    arguments: str
    """The text of a JSON object."""


class ToolCall(Body):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall


if TYPE_CHECKING:
    Content = str | list[ContentPart]
else:
    Content = one_or_list(str, list[ContentPart])


class Message(Body):
    """One message of a conversation."""

    role: str
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """Another name of reasoning_content."""
    audio: NoAudio = None
    function_call: NoFunctions = None


class FunctionDefinition(Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema."""
    strict: bool | None = None
    """true: calls have the arguments that the schema describes, if the model's calls can be told from other text."""


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Body):
    """Names a function."""

    name: str


class NamedTool(Body):
    """The function that the model must call."""

    type: Literal["function"]
    function: FunctionName


if TYPE_CHECKING:
    ToolChoice = Literal["none", "auto", "required"] | NamedTool
else:
    ToolChoice = text_or_object(Literal["none", "auto", "required"], NamedTool)


class ChatRequest(GenerationBody):
    """A conversation, and how to answer it."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Int32 | None = None
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    """false: an answer has one call at most."""
    reasoning_effort: str | None = None
    """Given to the chat template, as the argument `reasoning_effort`."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further arguments of the chat template, e.g. {"enable_thinking": false}."""
    continue_final_message: bool | None = None
    """The answer continues the last message, which must be the assistant's."""

    functions: NoFunctions = None
    function_call: NoFunctions = None
    audio: NoAudio = None
    modalities: TextOnly = None
    web_search_options: Unsupported = None
    documents: Unsupported = None
    echo: Unsupported = None
    prompt_logprobs: Unsupported = None

    add_generation_prompt: bool | None = None
    """Whether an answer begins, which it does unless continue_final_message is true."""
    add_special_tokens: bool | None = None
    """false: the chat template writes all special tokens itself, as it always does here."""

    @model_validator(mode="after")
    def _an_answer_begins_or_goes_on(self) -> "ChatRequest":
        if self.add_generation_prompt is not None and self.add_generation_prompt is bool(self.continue_final_message):
            raise ValueError("add_generation_prompt: must be the opposite of continue_final_message")
        return self

    @field_validator("add_special_tokens")
    @classmethod
    def _the_template_has_its_own(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("must be false: the chat template writes the special tokens")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _top_logprobs_are_not_negative(cls, value: int | None) -> int | None:
        if value is not None and value < 0:
            raise ValueError(f"must be at least 0, got {value}")
        return value
