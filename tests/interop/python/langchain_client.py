"""What langchain-openai makes of the gateway's answers, as one line of JSON: langchain_client.py BASE_URL CASE."""

import json
import sys
from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def weather(place: str) -> str:
    """The weather of a place."""
    return place


def main() -> None:
    """Runs one case."""
    url, case = sys.argv[1:]
    llm = ChatOpenAI(base_url=url, api_key="none", model="demo", temperature=0, max_tokens=12, max_retries=0)
    found: dict[str, Any]
    if case == "tools":
        answer = llm.bind_tools([weather], tool_choice="any").invoke("Hello")
        found = {"calls": [[call["name"], call["args"]] for call in answer.tool_calls]}
    else:
        whole = llm.invoke("Hello")
        chunks = list(llm.stream("Hello"))
        found = {"texts": [whole.content, "".join(str(chunk.content) for chunk in chunks)]}
        found["tokens"] = whole.usage_metadata["output_tokens"] if whole.usage_metadata else None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
