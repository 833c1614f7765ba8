"""The form of requests to /v1/completions, /tokenize and /detokenize."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

from pydantic import Discriminator, Field, Tag, model_validator

from http_gateway.openai.chat_request import Message
from http_gateway.openai.common import GenerationBody
from http_gateway.openai.fields import Body, Int32, TokenId, unsupported


def _form_of(prompt: object) -> str:
    if not isinstance(prompt, list):
        return "=text"
    first = prompt[0] if prompt else ""
    return "=texts" if isinstance(first, str) else "=lists" if isinstance(first, list) else "=ids"


if TYPE_CHECKING:
    Prompt = str | list[str] | list[int] | list[list[int]]
    Unsupported: TypeAlias = Any
    OnlyOne: TypeAlias = Any
else:
    Prompt = Annotated[
        Annotated[str, Tag("=text")]
        | Annotated[list[str], Tag("=texts"), Field(min_length=1)]
        | Annotated[list[TokenId], Tag("=ids")]
        | Annotated[list[list[TokenId]], Tag("=lists")],
        Discriminator(_form_of),
    ]
    Unsupported = unsupported()
    OnlyOne = unsupported(1, why="only 1 is supported")


class CompletionRequest(GenerationBody):
    """One or several prompts, and how to continue them."""

    prompt: Prompt
    """A text, token ids, or a list of either."""
    logprobs: Int32 | None = None
    """The log probability of each token, and of this many alternatives."""
    echo: bool | None = None
    """Whether each text begins with its prompt."""
    best_of: OnlyOne = None
    suffix: Unsupported = None
    prompt_logprobs: Unsupported = None
    prompt_embeds: Unsupported = None
    add_special_tokens: Literal[True] | None = None
    """true: a text begins with the special tokens that the model expects, as it always does here."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts: texts or token ids."""
        if not isinstance(self.prompt, list):
            return [self.prompt]
        is_one = _form_of(self.prompt) == "=ids"
        return [cast(list[int], self.prompt)] if is_one else cast(list[str | list[int]], self.prompt)


class TokenizeRequest(Body):
    """A text or a conversation whose tokens are wanted."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    """Whether to add the special tokens that the model expects around a text. Default: yes."""
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) is (self.messages is None):
            raise ValueError("prompt: exactly one of prompt and messages must be given")
        return self


class DetokenizeRequest(Body):
    """Token ids whose text is wanted."""

    model: str | None = None
    tokens: list[TokenId]
    skip_special_tokens: bool | None = None
    """Whether to leave special tokens out. Default: no."""
