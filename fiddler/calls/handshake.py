"""What both sides of the handshake compare."""

from fiddler import rpc, tensors
from fiddler.v1 import experts_pb2

_FORMAT = "weight_format"


def check_handshake(request: experts_pb2.DescribeRequest, description: experts_pb2.DescribeResponse) -> None:
    """Compares what the GPU service expects with what the CPU expert service is.

    The CPU expert service compares, and the GPU service does so again with the answer: a server that is not the one
    that was meant need not have compared.

    Raises:
        StatusError: They differ. The status is FAILED_PRECONDITION and names the field and both values.
    """
    # the format first: another one has another fingerprint, too, which says nothing to a person
    for field, expected in sorted(request.ListFields(), key=lambda pair: pair[0].name != _FORMAT):
        actual = getattr(description, field.name)
        if field.name == _FORMAT and not actual:  # of a version that did not say; the fingerprint covers it
            continue
        if expected != actual:
            if field.enum_type is not None:
                expected, actual = tensors.dtype_name(expected), tensors.dtype_name(actual)
            raise rpc.failed_precondition(
                field.name, f"{field.name}: the caller expects {expected}, and the CPU expert service has {actual}"
            )
