"""What every client that was not written here is tested with."""

from typing import Any

SERVICES = {"fiddler.v1.GenerationService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
PROMPT = "Once upon a time"


def assert_a_generation(messages: list[dict[str, Any]], max_tokens: int) -> None:
    """Asserts that messages, as JSON by their proto names, are one generation: chunks, then a matching `complete`."""
    *chunks, last = messages
    assert chunks
    assert all("chunk" in message for message in chunks)
    token_ids = [token_id for message in chunks for token_id in message["chunk"]["token_ids"]]
    assert 1 <= len(token_ids) <= max_tokens
    assert any(message["chunk"]["text"] for message in chunks)
    complete = last["complete"]
    assert complete["finish_reason"] in {"FINISH_REASON_LENGTH", "FINISH_REASON_EOS"}
    assert complete["usage"]["completion_tokens"] == len(token_ids)
    assert complete["usage"]["prompt_tokens"] > 0
    assert complete["timings"]["decode_seconds"] >= 0
