"""Converts torch tensors to and from fiddler.v1.Tensor. Bytes are copied once each way."""

import ctypes
import math
import warnings

import torch

from fiddler.v1 import tensor_pb2

DTYPES: dict[tensor_pb2.Dtype.ValueType, torch.dtype] = {
    tensor_pb2.DTYPE_FLOAT32: torch.float32,
    tensor_pb2.DTYPE_BFLOAT16: torch.bfloat16,
    tensor_pb2.DTYPE_FLOAT16: torch.float16,
    tensor_pb2.DTYPE_INT32: torch.int32,
}
PROTO_DTYPES = {dtype: number for number, dtype in DTYPES.items()}

# decode() returns read-only memory on purpose
warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)


class TensorError(ValueError):
    """A Tensor message contradicts itself, or is not what was expected.

    Attributes:
        field: The path of the wrong field, such as "hidden.shape".
        problem: What is wrong with it, without its name.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def encode(tensor: torch.Tensor, message: tensor_pb2.Tensor) -> None:
    """Packs a tensor on the CPU into an empty message.

    The message is filled in place, and should be a field of the message to send: passing a finished Tensor to the
    constructor of another message copies its bytes once more, and slowly (8 ms for 4 MiB).

    Args:
        tensor: Any shape and strides, of a dtype in DTYPES.
        message: The message to fill.

    Raises:
        KeyError: The dtype has no number in the protocol.
        ValueError: The tensor is on another device.
    """
    if tensor.device.type != "cpu":
        raise ValueError(f"a tensor on {tensor.device} cannot be sent")
    tensor = tensor.contiguous()
    # numpy has no bfloat16, and viewing it as another dtype takes longer than copying the message of a decode step
    message.data = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    message.shape.extend(tensor.shape)
    message.dtype = PROTO_DTYPES[tensor.dtype]


def decode(
    message: tensor_pb2.Tensor, field: str, *, dtype: torch.dtype, shape: tuple[int | None, ...]
) -> torch.Tensor:
    """Unpacks a message, after checking that it is what the caller expects.

    Args:
        message: The message.
        field: Its name in an error.
        dtype: The dtype that it must have.
        shape: The shape that it must have; None stands for any length from 1.

    Returns:
        A tensor of the message's shape over read-only bytes; it must not be written to.

    Raises:
        TensorError: The dtype, rank, a length or the number of bytes is wrong, or there is no payload.
    """
    if message.dtype != PROTO_DTYPES[dtype]:
        expected, got = dtype_name(PROTO_DTYPES[dtype]), dtype_name(message.dtype)
        raise TensorError(f"{field}.dtype", f"expected {expected}, got {got}")
    got_shape = tuple(message.shape)
    if len(got_shape) != len(shape) or any(
        length < 1 if want is None else length != want for length, want in zip(got_shape, shape, strict=True)
    ):
        wanted = ", ".join("at least 1" if want is None else str(want) for want in shape)
        raise TensorError(f"{field}.shape", f"expected [{wanted}], got {list(got_shape)}")
    if message.WhichOneof("payload") != "data":
        raise TensorError(f"{field}.payload", "expected data, got none")
    data = message.data  # read once, because protobuf copies the bytes at every access
    expected_bytes = math.prod(got_shape) * dtype.itemsize
    if len(data) != expected_bytes:
        raise TensorError(
            f"{field}.data", f"expected {expected_bytes} bytes for shape {list(got_shape)}, got {len(data)}"
        )
    return torch.frombuffer(data, dtype=dtype).view(got_shape)


def dtype_name(number: int) -> str:
    """The name of a Dtype number, or the number itself if it has none."""
    value = tensor_pb2.Dtype.DESCRIPTOR.values_by_number.get(number)
    return value.name if value else str(number)


def name_of(dtype: torch.dtype) -> str:
    """A dtype's name for people, e.g. bfloat16."""
    return str(dtype).removeprefix("torch.")


def resolve_dtype(name: str, stored: torch.dtype) -> torch.dtype:
    """The dtype that both services compute in.

    Args:
        name: "bfloat16", "float32" or "auto".
        stored: The dtype of the checkpoint's experts. "auto" is bfloat16 if they are stored in it, else float32, which
            holds the others exactly.
    """
    if name == "auto":
        return torch.bfloat16 if stored is torch.bfloat16 else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
