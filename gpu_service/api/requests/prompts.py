"""Turns the prompts of Generate and Tokenize into token ids, and back. An error names the field."""

from collections.abc import Iterable

from fiddler.v1 import generation_pb2
from gpu_service.api.requests import chats
from gpu_service.errors import ContextLengthError, RequestError
from gpu_service.model_runner.model import Model
from gpu_service.text.tokenizer import Tokenizer, TokenizerError


def of_request(message: generation_pb2.GenerateRequest, model: Model, tokenizer: Tokenizer) -> list[int]:
    """The prompt's token ids: at least one, and few enough for another in the context.

    Raises:
        RequestError: A field is wrong.
    """
    kind = message.WhichOneof("prompt")
    if kind is None:
        raise RequestError("prompt", "must be set: text, token_ids or chat")
    field = "token_ids.ids" if kind == "token_ids" else str(kind)
    if kind == "text":
        prompt = of_text(message.text, model, tokenizer) if message.text else []
    elif kind == "chat":
        prompt = of_chat(message.chat, model, tokenizer)
    else:
        prompt = list(message.token_ids.ids)
    if not prompt:
        raise RequestError(field, "must not be empty")
    prompt = _truncated(prompt, message, model)
    if len(prompt) >= model.max_context:
        raise ContextLengthError(
            field,
            f"the maximum context length is {model.max_context} tokens, of which one is for the output, got "
            f"{len(prompt)}; truncate_prompt uses the end only, and the server's --max-context sets the length",
        )
    # of a text, too: a tokenizer may have tokens without an embedding in the model
    check_token_ids(prompt, field, model)
    return prompt


def _truncated(prompt: list[int], message: generation_pb2.GenerateRequest, model: Model) -> list[int]:
    if not message.HasField("truncate_prompt"):
        return prompt
    kept = message.truncate_prompt
    if kept < 0:
        raise RequestError("truncate_prompt", f"must be at least 0, got {kept}")
    # if max_tokens itself is wrong, that is reported later
    kept = kept or max(model.max_context - max(message.max_tokens, 1), 1)
    return prompt[-kept:]


def of_text(text: str, model: Model, tokenizer: Tokenizer, *, add_special_tokens: bool = True) -> list[int]:
    """The token ids of a text, which may exceed the context, but not by far.

    Raises:
        RequestError: `text` is too long.
    """
    _check_length("text", len(text), model=model, tokenizer=tokenizer)
    return _encode(text, "text", tokenizer, add_special_tokens=add_special_tokens)


def of_chat(chat: generation_pb2.Chat, model: Model, tokenizer: Tokenizer) -> list[int]:
    """The token ids of a chat, as the model's chat template writes it, with the beginning of an answer.

    Raises:
        RequestError: `chat` or a field in it is wrong.
        QueueFullError: Too many chats are being rendered.
    """
    if not tokenizer.has_chat_template:
        raise RequestError("chat", f"{tokenizer.chat_templates.why_none}; send text or token_ids instead")
    if not chat.messages:
        raise RequestError("chat.messages", "must not be empty")
    # each message makes at least one token; checked before the template runs, as is the number of characters
    if len(chat.messages) > model.max_context:
        raise ContextLengthError(
            "chat.messages", f"{len(chat.messages)} are more than the context of {model.max_context} tokens holds"
        )
    num_characters = sum(map(len, chats.texts_of(chat)))
    _check_length("chat.messages", num_characters, model=model, tokenizer=tokenizer)
    text = chats.render(chat, tokenizer)
    _check_length("chat.messages", len(text), model=model, tokenizer=tokenizer)
    # the template itself writes the special tokens, such as the one that begins a text
    return _encode(text, "chat.messages", tokenizer, add_special_tokens=False)


def tokenize(
    message: generation_pb2.TokenizeRequest, model: Model, tokenizer: Tokenizer
) -> generation_pb2.TokenizeResponse:
    """A prompt's token ids, and each token's text.

    Raises:
        RequestError: A field is wrong.
    """
    kind = message.WhichOneof("prompt")
    if kind is None:
        raise RequestError("prompt", "must be set: text or chat")
    if kind == "chat":
        if message.HasField("add_special_tokens"):
            raise RequestError("add_special_tokens", "must be unset with chat: the template has its own")
        token_ids = of_chat(message.chat, model, tokenizer)
    else:
        add_special_tokens = message.add_special_tokens or not message.HasField("add_special_tokens")
        token_ids = of_text(message.text, model, tokenizer, add_special_tokens=add_special_tokens)
    texts = [tokenizer.token_text(token_id) for token_id in token_ids]
    return generation_pb2.TokenizeResponse(token_ids=token_ids, tokens=texts)


def detokenize(
    message: generation_pb2.DetokenizeRequest, model: Model, tokenizer: Tokenizer
) -> generation_pb2.DetokenizeResponse:
    """The text of token ids.

    Raises:
        RequestError: A field is wrong.
    """
    if len(message.token_ids) > model.max_context:
        problem = f"at most {model.max_context}, the context, got {len(message.token_ids)}"
        raise RequestError("token_ids", problem)
    check_token_ids(message.token_ids, "token_ids", model)
    skip_special_tokens = message.skip_special_tokens or not message.HasField("skip_special_tokens")
    try:
        text = tokenizer.decode(message.token_ids, skip_special_tokens)
    except TokenizerError as error:
        raise RequestError("token_ids", f"the tokenizer cannot decode them: {error}") from None
    return generation_pb2.DetokenizeResponse(text=text)


def check_token_ids(ids: Iterable[int], field: str, model: Model) -> None:
    """Checks that all ids are in the model's vocabulary.

    Raises:
        RequestError: An id is not; the field ends with its position.
    """
    for position, token_id in enumerate(ids):
        if token_id >= model.vocab_size:
            raise RequestError(
                f"{field}[{position}]", f"must be 0 to {model.vocab_size - 1}, the vocabulary, got {token_id}"
            )


def _encode(text: str, field: str, tokenizer: Tokenizer, *, add_special_tokens: bool) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens)
    except TokenizerError as error:
        raise RequestError(field, f"the tokenizer cannot encode it: {error}") from None


def _check_length(field: str, num_characters: int, *, model: Model, tokenizer: Tokenizer) -> None:
    """Refuses a far too long text without encoding it, which would take long."""
    if num_characters > model.max_context * tokenizer.longest_token:
        raise ContextLengthError(
            field, f"{num_characters} characters are more than the context of {model.max_context} tokens holds"
        )
