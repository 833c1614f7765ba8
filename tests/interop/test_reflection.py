"""grpc-requests, a Python client that learns the services and their types by reflection alone."""

from typing import Any

import pytest
from google.protobuf.descriptor_pool import DescriptorPool

from pair import Pair
from tests.support.interop import PROMPT, SERVICES, assert_a_generation

grpc_requests = pytest.importorskip("grpc_requests", reason="grpc-requests is not installed")

MAX_TOKENS = 8
SERVICE = "fiddler.v1.GenerationService"


@pytest.fixture
def stranger(pair: Pair) -> Any:
    # The default pool knows the types from our generated stubs, which a foreign client does not have.
    return grpc_requests.Client(pair.target, descriptor_pool=DescriptorPool())


def test_reflection_lists_the_services(stranger: Any) -> None:
    assert set(stranger.service_names) >= SERVICES


def test_a_generation_streams_to_a_client_that_knows_only_reflection(stranger: Any) -> None:
    request = {"text": PROMPT, "max_tokens": MAX_TOKENS, "sampling": {"temperature": 0}}
    assert_a_generation(list(stranger.request(SERVICE, "Generate", request)), MAX_TOKENS)


def test_health_is_served(stranger: Any) -> None:
    assert stranger.request("grpc.health.v1.Health", "Check", {}) == {"status": "SERVING"}
    assert stranger.request("grpc.health.v1.Health", "Check", {"service": SERVICE}) == {"status": "SERVING"}
