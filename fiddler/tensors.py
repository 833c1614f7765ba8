"""torch tensors to and from fiddler.v1.Tensor. Bytes are copied once each way."""

import math
import warnings

import torch

from fiddler.v1 import tensor_pb2

DTYPES: dict[tensor_pb2.Dtype.ValueType, torch.dtype] = {
    tensor_pb2.DTYPE_FLOAT32: torch.float32,
    tensor_pb2.DTYPE_BFLOAT16: torch.bfloat16,
    tensor_pb2.DTYPE_INT32: torch.int32,
}
PROTO_DTYPES = {dtype: number for number, dtype in DTYPES.items()}

# decode() hands out read-only memory on purpose
warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)


class TensorError(ValueError):
    """A Tensor message that does not hold what it says, or not what was expected. The text names the field."""


def encode(tensor: torch.Tensor) -> tensor_pb2.Tensor:
    """Packs a tensor on the CPU into a message.

    Args:
        tensor: Any shape and strides, of a dtype in DTYPES.

    Raises:
        TensorError: The dtype has no number on the wire.
    """
    if tensor.dtype not in PROTO_DTYPES:
        raise TensorError(f"{tensor.dtype} cannot be sent")
    # numpy knows no bfloat16, so the bytes are taken as bytes
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return tensor_pb2.Tensor(shape=tensor.shape, dtype=PROTO_DTYPES[tensor.dtype], data=data)


def decode(message: tensor_pb2.Tensor, field: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> torch.Tensor:
    """Unpacks a message, after checking that it is what the caller expects.

    Args:
        message: The message.
        field: What to call it in an error.
        dtype: The dtype that it must have.
        shape: The shape that it must have; None stands for any length from 1.

    Returns:
        A tensor of the message's shape, over read-only bytes: not to be written to.

    Raises:
        TensorError: Wrong dtype, rank, length or byte count, or no payload.
    """
    if message.dtype != PROTO_DTYPES[dtype]:
        expected, got = (tensor_pb2.Dtype.Name(PROTO_DTYPES[dtype]), _dtype_name(message.dtype))
        raise TensorError(f"{field}.dtype: expected {expected}, got {got}")
    got_shape = tuple(message.shape)
    if len(got_shape) != len(shape) or any(
        length < 1 if want is None else length != want for length, want in zip(got_shape, shape, strict=True)
    ):
        wanted = ", ".join("at least 1" if want is None else str(want) for want in shape)
        raise TensorError(f"{field}.shape: expected [{wanted}], got {list(got_shape)}")
    if message.WhichOneof("payload") != "data":
        raise TensorError(f"{field}.payload: expected data, got none")
    data = message.data  # bound once, since protobuf copies the bytes at every access
    expected_bytes = math.prod(got_shape) * dtype.itemsize
    if len(data) != expected_bytes:
        raise TensorError(f"{field}.data: expected {expected_bytes} bytes for shape {list(got_shape)}, got {len(data)}")
    return torch.frombuffer(data, dtype=dtype).view(got_shape)


def _dtype_name(number: int) -> str:
    return tensor_pb2.Dtype.Name(number) if number in tensor_pb2.Dtype.values() else str(number)
