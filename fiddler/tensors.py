"""torch tensors to and from fiddler.v1.Tensor. Bytes are copied once each way."""

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

# decode() hands out read-only memory on purpose
warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)


class TensorError(ValueError):
    """A Tensor message that does not hold what it says, or not what was expected."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def encode(tensor: torch.Tensor, message: tensor_pb2.Tensor) -> None:
    """Packs a tensor on the CPU into an empty message.

    It fills a message in place, a field of the one to be sent: giving a finished Tensor to the constructor of another
    message copies its bytes once more, and slowly (8 ms for 4 MiB).

    Args:
        tensor: Any shape and strides, of a dtype in DTYPES.
        message: What to fill.

    Raises:
        KeyError: The dtype has no number on the wire.
        ValueError: The tensor is on another device.
    """
    if tensor.device.type != "cpu":
        raise ValueError(f"a tensor on {tensor.device} cannot be sent")
    tensor = tensor.contiguous()
    # numpy knows no bfloat16, and the views around it take longer than copying a decode message does
    message.data = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    message.shape.extend(tensor.shape)
    message.dtype = PROTO_DTYPES[tensor.dtype]


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
    data = message.data  # bound once, since protobuf copies the bytes at every access
    expected_bytes = math.prod(got_shape) * dtype.itemsize
    if len(data) != expected_bytes:
        raise TensorError(
            f"{field}.data", f"expected {expected_bytes} bytes for shape {list(got_shape)}, got {len(data)}"
        )
    return torch.frombuffer(data, dtype=dtype).view(got_shape)


def dtype_name(number: int) -> str:
    """The name of a Dtype number, or the number where it has none."""
    value = tensor_pb2.Dtype.DESCRIPTOR.values_by_number.get(number)
    return value.name if value else str(number)


def resolve_dtype(name: str, stored: torch.dtype) -> torch.dtype:
    """What both services compute in.

    Args:
        name: "bfloat16", "float32" or "auto".
        stored: The dtype of the checkpoint's experts. "auto" takes it where it can be computed in, else float32, which
            holds it exactly.
    """
    if name == "auto":
        return torch.bfloat16 if stored is torch.bfloat16 else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
