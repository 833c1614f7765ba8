"""What the openai library makes of the gateway's answers, as one line of JSON: openai_client.py BASE_URL CASE."""

import asyncio
import json
import sys
from typing import Any

from openai import APIStatusError, AsyncOpenAI, OpenAI
from pydantic import BaseModel

HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


class Place(BaseModel):
    """What a parsed answer is."""

    name: str
    people: int


def answers(llm: OpenAI) -> dict[str, Any]:
    """Plain, streamed and asynchronous answers to the same question."""
    wanted: Any = {"model": "demo", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    plain = llm.chat.completions.create(**wanted, logprobs=True, top_logprobs=2)
    streamed = list(llm.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))

    async def asynchronously() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=llm.base_url, api_key="none") as other:
            whole = await other.chat.completions.create(**wanted)
            parts = [part async for part in await other.chat.completions.create(**wanted, stream=True)]
        return whole.choices[0].message.content or "", _text(parts)

    logprobs = plain.choices[0].logprobs
    assert logprobs is not None
    return {
        "texts": [plain.choices[0].message.content, _text(streamed), *asyncio.run(asynchronously())],
        "from_logprobs": "".join(token.token for token in logprobs.content or ()),
        "num_alternatives": [len(token.top_logprobs) for token in logprobs.content or ()],
        "usages": [plain.usage.model_dump() if plain.usage else None, streamed[-1].usage.model_dump()],
        "models": [model.id for model in llm.models.list()],
    }


def completions(llm: OpenAI) -> dict[str, Any]:
    """A text completion of two prompts, with echo and log probabilities."""
    answer = llm.completions.create(
        model="demo", prompt=["In the beginning", "It was"], max_tokens=4, temperature=0, echo=True, logprobs=1
    )
    return {"choices": [choice.model_dump() for choice in answer.choices]}


def tools(llm: OpenAI) -> dict[str, Any]:
    """One tool round trip, plain and streamed."""
    first = llm.chat.completions.create(model="demo", messages=HELLO, tools=[TOOL], tool_choice="required")
    message = first.choices[0].message
    (call,) = message.tool_calls or ()
    assert call.type == "function"
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    second = llm.chat.completions.create(model="demo", messages=[*HELLO, message, result], tools=[TOOL])
    with llm.chat.completions.stream(model="demo", messages=HELLO, tools=[TOOL]) as stream:
        stream.until_done()
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    return {
        "call": [call.function.name, json.loads(call.function.arguments)],
        "finish_reason": first.choices[0].finish_reason,
        "streamed": [streamed.function.name, json.loads(streamed.function.arguments)],
        "answer": second.choices[0].message.content,
    }


def parsed(llm: OpenAI) -> dict[str, Any]:
    """An answer in the form of a pydantic model."""
    answer = llm.chat.completions.parse(model="demo", messages=HELLO, response_format=Place, max_tokens=200)
    place = answer.choices[0].message.parsed
    assert place is not None
    return place.model_dump()


def errors(llm: OpenAI) -> dict[str, Any]:
    """The errors that the library raises."""
    found = {}
    for name, fields in {
        "field": {"temperature": -1},
        "model": {"model": "gpt"},
        "unsupported": {"functions": [{"name": "f"}]},
    }.items():
        try:
            llm.chat.completions.create(**{"model": "demo", "messages": HELLO, "max_tokens": 1, **fields})  # type: ignore[call-overload]
        except APIStatusError as error:
            found[name] = [type(error).__name__, error.status_code, error.param]
    return found


def _text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def main() -> None:
    """Runs one case."""
    url, case = sys.argv[1:]
    with OpenAI(base_url=url, api_key="none", max_retries=0) as llm:
        print(json.dumps(globals()[case](llm)))


if __name__ == "__main__":
    main()
