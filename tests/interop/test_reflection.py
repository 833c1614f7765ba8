"""grpc-requests, a Python client that learns services and their types from reflection alone."""

from typing import Any

import pytest
from google.protobuf.descriptor_pool import DescriptorPool

from tests.support.served import PROMPT, SERVICES, Served, assert_a_generation

grpc_requests = pytest.importorskip("grpc_requests", reason="grpc-requests is not installed")

MAX_TOKENS = 8
SERVICE = "fiddler.v1.GenerationService"


@pytest.fixture
def stranger(served: Served) -> Any:
    # a pool of its own: the default one knows our types from our own stubs, which a stranger has not
    return grpc_requests.Client(served.target, descriptor_pool=DescriptorPool())


def test_reflection_lists_the_services(stranger: Any) -> None:
    assert set(stranger.service_names) >= SERVICES


def test_a_generation_streams_to_a_client_that_knows_only_reflection(stranger: Any) -> None:
    request = {"text": PROMPT, "max_tokens": MAX_TOKENS, "sampling": {"temperature": 0}}
    assert_a_generation(list(stranger.request(SERVICE, "Generate", request)), MAX_TOKENS)


def test_health_is_served(stranger: Any) -> None:
    assert stranger.request("grpc.health.v1.Health", "Check", {}) == {"status": "SERVING"}
    assert stranger.request("grpc.health.v1.Health", "Check", {"service": SERVICE}) == {"status": "SERVING"}
