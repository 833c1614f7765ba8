"""Spans of requests, as a collector receives them from a pair: over gRPC and over HTTP, in a caller's trace."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")

from client import Client, InvalidRequestError
from pair import Pair
from tests.support.otlp import Receiver
from tests.support.pairs import WarmPair, write_tiny
from tests.support.ports import free_port

NUM_TOKENS = 6
PROMPT = [5, 6, 7]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with pytest.MonkeyPatch.context() as patch, Receiver() as running:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # in ms; spans are sent every five seconds otherwise
        yield running


@pytest.fixture(scope="module")
def pair(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    model = write_tiny(tmp_path_factory.mktemp("checkpoints") / "traced")
    gpu = ("--device", "cpu", "--traces-endpoint", receiver.url)
    with WarmPair(model, gpu_arguments=gpu, http=f"127.0.0.1:{free_port()}") as running:
        yield running


def _attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def _children(receiver: Receiver, parent: Any) -> dict[str, list[Any]]:
    """The spans below one, by name, in the order of time."""
    found: dict[str, list[Any]] = {}
    for span in sorted(receiver.spans, key=lambda span: span.start_time_unix_nano):
        if span.parent_span_id == parent.span_id:
            found.setdefault(span.name, []).append(span)
    return found


def test_a_request_is_a_tree_down_to_the_seconds_of_each_step(pair: Pair, receiver: Receiver) -> None:
    receiver.spans.clear()
    with Client(pair.target) as client:
        client.generate(PROMPT, max_tokens=NUM_TOKENS, request_id="mine").text()
    receiver.wait_for(lambda: any(span.name == "generate" for span in receiver.spans))
    (root,) = [span for span in receiver.spans if span.name == "generate"]
    assert receiver.services == {"fiddler-gpu-service"}
    assert root.parent_span_id == b""
    facts = _attributes(root)
    assert facts["gen_ai.request.model"] == "traced"
    assert facts["gen_ai.response.id"] == "mine"
    assert (facts["gen_ai.usage.input_tokens"], facts["gen_ai.usage.output_tokens"]) == (len(PROMPT), NUM_TOKENS)
    stages = _children(receiver, root)
    assert {name: len(spans) for name, spans in stages.items()} == {"queue": 1, "prefill": 1, "decode": 1}
    (prefill,), (decode,) = stages["prefill"], stages["decode"]
    assert root.start_time_unix_nano <= prefill.start_time_unix_nano <= decode.start_time_unix_nano
    assert decode.end_time_unix_nano <= root.end_time_unix_nano
    assert len(_children(receiver, prefill)["prefill step"]) == 1
    steps = _children(receiver, decode)["decode step"]
    assert len(steps) == NUM_TOKENS - 1
    for step in steps:
        seconds = (step.end_time_unix_nano - step.start_time_unix_nano) / 1e9
        parts = _attributes(step)
        assert 0 < parts["fiddler.cpu_seconds"] < parts["fiddler.layers_seconds"] < seconds
        assert parts["fiddler.hop_seconds"] > 0
        assert parts["fiddler.rows"] == 1


def test_a_callers_trace_is_gone_on_with_over_http_and_grpc(pair: Pair, receiver: Receiver) -> None:
    receiver.spans.clear()
    body = json.dumps({"prompt": "a", "max_tokens": 2}).encode()
    headers = {"content-type": "application/json", "traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"}
    request = urllib.request.Request(f"http://{pair.http}/v1/completions", body, headers)
    _OPENER.open(request, timeout=60).close()
    malformed = urllib.request.Request(request.full_url, body, {**headers, "traceparent": "00-no\x80-01"})
    _OPENER.open(malformed, timeout=60).close()
    receiver.wait_for(lambda: sum(span.name == "generate" for span in receiver.spans) == 2)
    traced, own = sorted(
        (span for span in receiver.spans if span.name == "generate"), key=lambda span: span.start_time_unix_nano
    )
    assert (traced.trace_id.hex(), traced.parent_span_id.hex(), traced.trace_state) == (TRACE, PARENT, "a=b")
    assert (own.trace_id.hex() == TRACE, own.parent_span_id) == (False, b"")


def test_a_request_that_is_refused_leaves_nothing_behind(pair: Pair, receiver: Receiver) -> None:
    receiver.spans.clear()
    with Client(pair.target) as client:
        with pytest.raises(InvalidRequestError):
            client.generate(PROMPT, max_tokens=10**6).text()
        client.generate(PROMPT, max_tokens=1).text()
    receiver.wait_for(lambda: any(span.name == "generate" for span in receiver.spans))
    (root,) = [span for span in receiver.spans if span.name == "generate"]
    assert _attributes(root)["gen_ai.usage.output_tokens"] == 1
    assert "decode step" not in {span.name for span in receiver.spans}


def test_spans_under_way_are_sent_at_the_end(receiver: Receiver, tmp_path: Path) -> None:
    receiver.spans.clear()
    gpu = ("--device", "cpu", "--traces-endpoint", receiver.url)
    with WarmPair(write_tiny(tmp_path / "traced"), gpu_arguments=gpu) as running, Client(running.target) as client:
        client.generate(PROMPT, max_tokens=1).text()
        assert running.stop("gpu_service") == 0
    assert [span.name for span in receiver.spans if span.parent_span_id == b""] == ["generate"]
