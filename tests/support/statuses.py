"""Reads the details of a failed call."""

from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def details(error: Any) -> list[Message]:
    """The google.rpc details that a failed call carries, decoded; sync or aio."""
    status = rpc_status.from_call(error)
    if status is None:
        return []
    assert (status.code, status.message) == (error.code().value[0], error.details())
    known = (error_details_pb2.BadRequest, error_details_pb2.PreconditionFailure, error_details_pb2.RetryInfo)
    unpacked: list[Message] = []
    for detail in status.details:
        (message,) = (kind() for kind in known if detail.Is(kind.DESCRIPTOR))
        detail.Unpack(message)
        unpacked.append(message)
    return unpacked


def wrong_field(error: Any) -> tuple[str, str]:
    """Field and description of the one violation of an INVALID_ARGUMENT."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (detail,) = details(error)
    assert isinstance(detail, error_details_pb2.BadRequest)
    (violation,) = detail.field_violations
    return violation.field, violation.description


def mismatch(error: Any) -> tuple[str, str]:
    """Subject and description of the one violation of a FAILED_PRECONDITION."""
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    (detail,) = details(error)
    assert isinstance(detail, error_details_pb2.PreconditionFailure)
    (violation,) = detail.violations
    assert violation.type == "MISMATCH"
    return violation.subject, violation.description


def retry_seconds(error: Any) -> float:
    """The seconds after which a RESOURCE_EXHAUSTED should be repeated."""
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (detail,) = details(error)
    assert isinstance(detail, error_details_pb2.RetryInfo)
    return float(detail.retry_delay.ToTimedelta().total_seconds())
