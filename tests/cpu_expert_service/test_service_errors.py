"""A wrong message ends its own stream, with a status that names the field, and no other stream."""

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import torch
from structlog.testing import capture_logs

from fiddler import tensors
from fiddler.v1 import experts_pb2
from tests.support import statuses
from tests.support.in_process_service import MAX_EXPERTS_PER_ROW, MAX_MESSAGE_BYTES, MAX_ROWS, Service, value
from tests.support.streams import HIDDEN_SIZE, ask, stream

Damage = Callable[[experts_pb2.RunRequest], Any]


def replaced(field: str, tensor: torch.Tensor) -> Damage:
    def damage(request: experts_pb2.RunRequest) -> None:
        request.ClearField(field)  # type: ignore[arg-type]
        tensors.encode(tensor, getattr(request, field))

    return damage


def shorter(field: str) -> Damage:
    def damage(request: experts_pb2.RunRequest) -> None:
        message = getattr(request, field)
        message.data = message.data[:-1]

    return damage


def without(field: str, part: str | None = None) -> Damage:
    return lambda request: getattr(request, field).ClearField(part) if part else request.ClearField(field)  # type: ignore[arg-type]


ROWS, K = 2, 2
IDS = torch.zeros(ROWS, K, dtype=torch.int32)
GOOD = {"hidden": torch.zeros(ROWS, HIDDEN_SIZE), "expert_ids": IDS, "routing_weights": torch.zeros(ROWS, K)}
BAD: list[tuple[str, Damage, str, str]] = [
    ("layer", lambda request: setattr(request, "layer", 2), "layer", "must be 0 to 1, got 2"),
    ("highest layer", lambda request: setattr(request, "layer", 2**32 - 1), "layer", "must be 0 to 1, got 4294967295"),
    ("id too large", replaced("expert_ids", IDS + 8), "expert_ids", "must be -1 to 7, got 8"),
    ("id below -1", replaced("expert_ids", IDS - 2), "expert_ids", "must be -1 to 7, got -2"),
    (
        "one id of many",
        replaced("expert_ids", torch.tensor([[0, -1], [-(2**31), 3]], dtype=torch.int32)),
        "expert_ids",
        "must be -1 to 7, got -2147483648",
    ),
    *((f"{name} short of a byte", shorter(name), f"{name}.data", "bytes for shape") for name in GOOD),
    *((f"no {name}", without(name), f"{name}.dtype", "got DTYPE_UNSPECIFIED") for name in GOOD),
    *((f"{name} without payload", without(name, "data"), f"{name}.payload", "expected data") for name in GOOD),
    *(
        (f"{name} of another dtype", replaced(name, tensor.to(torch.float16)), f"{name}.dtype", "got DTYPE_FLOAT16")
        for name, tensor in GOOD.items()
    ),
    *(
        (f"{name} of another rank", replaced(name, tensor[None]), f"{name}.shape", "got [1, 2, ")
        for name, tensor in GOOD.items()
    ),
    *(
        (f"{name} of more rows", replaced(name, torch.cat([GOOD[name]] * 2)), f"{name}.shape", "got [4, 2]")
        for name in ("expert_ids", "routing_weights")
    ),
    (
        "narrow rows",
        replaced("hidden", torch.zeros(ROWS, 63)),
        "hidden.shape",
        "at least 1, 64], got [2, 63]",
    ),
    ("more weights than ids", replaced("routing_weights", torch.zeros(ROWS, 3)), "routing_weights.shape", "got [2, 3]"),
    ("no rows", replaced("hidden", torch.zeros(0, HIDDEN_SIZE)), "hidden.shape", "got [0, 64]"),
    ("no experts", replaced("expert_ids", IDS[:, :0]), "expert_ids.shape", "got [2, 0]"),
]


@pytest.mark.parametrize(("damage", "field", "problem"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_message_ends_its_own_stream(service: Service, damage: Damage, field: str, problem: str) -> None:
    with stream(service.channel) as bystander, stream(service.channel) as offender:
        assert bystander.works()
        assert offender.works()
        request = ask(rows=ROWS, k=K)
        damage(request)
        error = offender.fails(request, ask())
        named, description = statuses.wrong_field(error)
        assert named == field
        assert problem in description
        assert error.details() == f"{field}: {description}"
        assert bystander.works()


@pytest.mark.parametrize(
    ("shape", "field", "problem"),
    [
        ((MAX_ROWS + 1, 1), "hidden.shape", "at most 16 rows, got 17"),
        ((1, MAX_EXPERTS_PER_ROW + 1), "expert_ids.shape", "at most 4 experts per row, got 5"),
    ],
)
def test_limits_are_kept(service: Service, shape: tuple[int, int], field: str, problem: str) -> None:
    with stream(service.channel) as bystander, stream(service.channel) as offender:
        assert bystander.works()
        error = offender.fails(ask(rows=shape[0], k=shape[1]))
        assert statuses.wrong_field(error) == (field, problem)
        assert bystander.works()


@pytest.mark.parametrize("remaining", [0.0, -1.0])
def test_a_message_whose_time_is_over_ends_its_stream(service: Service, remaining: float) -> None:
    request = ask(sequence=41)
    request.time_remaining_seconds = remaining
    with stream(service.channel) as bystander, stream(service.channel) as offender:
        assert bystander.works()
        error = offender.fails(request)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == "message 41: its time ran out before it was computed"
        assert bystander.works()


def test_a_message_whose_time_ends_while_it_waits_is_not_computed(service: Service) -> None:
    service.kernel.gate = threading.Event()
    late = ask()
    late.time_remaining_seconds = 0.1
    with stream(service.channel) as first, stream(service.channel) as second:
        first.send(ask(sequence=5))
        time.sleep(0.05)
        second.send(late)
        time.sleep(0.2)
        service.kernel.gate.set()
        assert first.receive().sequence == 5
        assert second.fails().code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_message_with_time_left_is_answered(service: Service) -> None:
    request = ask()
    request.time_remaining_seconds = 30
    with stream(service.channel) as opened:
        opened.send(request)
        assert opened.receive().sequence == 1


def test_a_kernel_that_fails_ends_one_stream_and_is_logged(service: Service) -> None:
    failed = value("fiddler_expert_requests_total", code="INTERNAL")
    with stream(service.channel) as bystander, stream(service.channel) as unlucky:
        assert bystander.works()
        assert unlucky.works()
        service.kernel.failure = RuntimeError("the secret of the kernel")
        request = ask()
        request.request_ids.extend(["one", "two"])
        with capture_logs() as logs:
            error = unlucky.fails(request)
        service.kernel.failure = None
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == "the computation failed; the service's log says why"
        assert [(entry["event"], entry["log_level"], entry["exc_info"], entry["request_ids"]) for entry in logs] == [
            ("computation failed", "error", True, ["one", "two"])
        ]
        assert bystander.works()
    assert value("fiddler_expert_requests_total", code="INTERNAL") == failed + 1


def test_a_message_over_the_size_limit_is_refused(service: Service) -> None:
    huge = ask()
    huge.hidden.data = bytes(MAX_MESSAGE_BYTES)
    with stream(service.channel) as bystander, stream(service.channel) as offender:
        assert bystander.works()
        error = offender.fails(huge)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(MAX_MESSAGE_BYTES) in error.details()
        assert bystander.works()
