"""What openai and anthropic make of a router's answers, as one line of JSON: router_client.py BASE_URL CASE."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from anthropic import Anthropic
from openai import OpenAI

HELLO: Any = [{"role": "user", "content": "Hello"}]
NUM_THREADS, NUM_EACH = 4, 12


def both(openai: OpenAI, anthropic: Anthropic) -> dict[str, Any]:
    """The same question through both APIs, plain and streamed."""
    wanted: Any = {"model": "demo", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    plain = openai.chat.completions.create(**wanted)
    streamed = openai.chat.completions.create(**wanted, stream=True)
    wanted["extra_body"] = {"temperature": wanted.pop("temperature")}  # the library has no argument for it
    message = anthropic.messages.create(**wanted)
    with anthropic.messages.stream(**wanted) as stream:
        of_stream = stream.get_final_text()
    return {
        "texts": [
            plain.choices[0].message.content,
            "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices),
            "".join(block.text for block in message.content if block.type == "text"),
            of_stream,
        ],
        "usage": [plain.usage.completion_tokens if plain.usage else None, message.usage.output_tokens],
        "stop_reason": message.stop_reason,
    }


def load(openai: OpenAI, anthropic: Anthropic) -> dict[str, Any]:
    """Many requests from several threads; prints a line for each, with what went wrong."""

    def ask(number: int) -> str:
        prompt = [{"role": "user", "content": f"Hello, {number}"}]
        try:
            answer = openai.chat.completions.create(
                model="demo",
                messages=prompt,
                max_tokens=8,
                temperature=0,
                timeout=60,  # type: ignore[arg-type]
            )
            return "" if answer.choices[0].message.content else "empty"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    outcomes = []
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for outcome in threads.map(ask, range(NUM_THREADS * NUM_EACH)):
            outcomes.append(outcome)
            print(json.dumps(outcome), flush=True)
    return {"outcomes": outcomes}


def main() -> None:
    """Runs one case."""
    url, case = sys.argv[1:]
    with (
        OpenAI(base_url=url, api_key="none", max_retries=0) as openai,
        Anthropic(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0) as anthropic,
    ):
        print(json.dumps(globals()[case](openai, anthropic)))


if __name__ == "__main__":
    main()
