"""A tensor is transferred bit for bit, and a message that contradicts itself is refused with the name of its field."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiddler import tensors
from fiddler.v1 import tensor_pb2

SHAPES = st.lists(st.integers(1, 5), max_size=4)
DTYPES = st.sampled_from(list(tensors.PROTO_DTYPES))


@st.composite
def any_tensor(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any bits: infinities and NaNs with payloads, too."""
    dtype, shape = draw(DTYPES), draw(SHAPES)
    size = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(bytearray(draw(st.binary(min_size=size, max_size=size))), dtype=dtype).view(shape)


def encode(tensor: torch.Tensor) -> tensor_pb2.Tensor:
    """Encodes, serializes and parses."""
    message = tensor_pb2.Tensor()
    tensors.encode(tensor, message)
    return tensor_pb2.Tensor.FromString(message.SerializeToString())


def bits(tensor: torch.Tensor) -> list[int]:
    """Bytes, so that NaN equals NaN."""
    return list(tensor.contiguous().view(-1).view(torch.uint8).tolist())


@settings(deadline=None)
@given(any_tensor())
def test_every_bit_survives(tensor: torch.Tensor) -> None:
    message = encode(tensor)
    decoded = tensors.decode(message, "x", dtype=tensor.dtype, shape=tuple(tensor.shape))
    assert decoded.dtype == tensor.dtype
    assert decoded.shape == tensor.shape
    assert bits(decoded) == bits(tensor)


@settings(deadline=None)
@given(any_tensor(), st.randoms(use_true_random=False))
def test_strides_do_not_matter(tensor: torch.Tensor, random: st.DataObject) -> None:
    order = random.sample(range(tensor.ndim), tensor.ndim)  # type: ignore[attr-defined]
    spread = tensor.repeat_interleave(2, dim=-1)[..., ::2] if tensor.ndim else tensor
    view = spread.permute(order)
    decoded = tensors.decode(encode(view), "x", dtype=tensor.dtype, shape=tuple(view.shape))
    assert bits(decoded) == bits(tensor.permute(order))


def test_the_payload_of_a_bfloat16_nan_survives() -> None:
    words = torch.tensor([0x7F81, 0x7FFF, -0x7F, 0x7FC1], dtype=torch.int16)
    nans = words.view(torch.bfloat16)
    assert nans.isnan().all()
    assert (
        tensors.decode(encode(nans), "x", dtype=torch.bfloat16, shape=(4,)).view(torch.int16).tolist() == words.tolist()
    )


def test_the_bytes_are_little_endian_and_row_major() -> None:
    message = encode(torch.tensor([[1, 2], [3, -1]], dtype=torch.int32).T)
    assert message.dtype == tensor_pb2.DTYPE_INT32
    assert message.shape == [2, 2]
    assert message.data == b"\1\0\0\0\3\0\0\0\2\0\0\0\xff\xff\xff\xff"


def test_a_tensor_that_needs_a_gradient_is_encoded() -> None:
    assert encode(torch.ones(2, requires_grad=True)).data == torch.ones(2).numpy().tobytes()


def test_a_dtype_without_a_number_is_refused() -> None:
    with pytest.raises(KeyError):
        encode(torch.ones(2, dtype=torch.float64))


def test_a_tensor_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="a tensor on meta cannot be sent"):
        encode(torch.ones(2, device="meta"))


def test_every_dtype_on_the_wire_has_a_torch_dtype() -> None:
    numbers = set(tensor_pb2.Dtype.values()) - {tensor_pb2.DTYPE_UNSPECIFIED}
    assert set(tensors.DTYPES) == numbers


@pytest.mark.parametrize("length", [1, 2, 7])
def test_none_stands_for_any_length(length: int) -> None:
    assert tensors.decode(encode(torch.zeros(length, 3)), "x", dtype=torch.float32, shape=(None, 3)).shape == (
        length,
        3,
    )


FLOAT32, FLOAT16, UNSPECIFIED = tensor_pb2.DTYPE_FLOAT32, tensor_pb2.DTYPE_FLOAT16, tensor_pb2.DTYPE_UNSPECIFIED


@pytest.mark.parametrize(
    ("message", "field", "problem"),
    [
        (
            tensor_pb2.Tensor(dtype=FLOAT16, shape=[2, 3], data=bytes(24)),
            "x.dtype",
            "expected DTYPE_FLOAT32, got DTYPE_FLOAT16",
        ),
        (
            tensor_pb2.Tensor(dtype=UNSPECIFIED, shape=[2, 3], data=bytes(24)),
            "x.dtype",
            "expected DTYPE_FLOAT32, got DTYPE_UNSPECIFIED",
        ),
        (tensor_pb2.Tensor(), "x.dtype", "expected DTYPE_FLOAT32, got DTYPE_UNSPECIFIED"),
        (
            # a number of a later version
            tensor_pb2.Tensor.FromString(b"\x10\x63"),
            "x.dtype",
            "expected DTYPE_FLOAT32, got 99",
        ),
        (
            tensor_pb2.Tensor(dtype=FLOAT32, shape=[6], data=bytes(24)),
            "x.shape",
            "expected [at least 1, 3], got [6]",
        ),
        (
            tensor_pb2.Tensor(dtype=FLOAT32, shape=[1, 2, 3], data=bytes(24)),
            "x.shape",
            "expected [at least 1, 3], got [1, 2, 3]",
        ),
        (
            tensor_pb2.Tensor(dtype=FLOAT32, shape=[3, 2], data=bytes(24)),
            "x.shape",
            "expected [at least 1, 3], got [3, 2]",
        ),
        (
            tensor_pb2.Tensor(dtype=FLOAT32, shape=[0, 3], data=b""),
            "x.shape",
            "expected [at least 1, 3], got [0, 3]",
        ),
        (
            tensor_pb2.Tensor(dtype=FLOAT32, shape=[2, 3]),
            "x.payload",
            "expected data, got none",
        ),
        (
            tensor_pb2.Tensor(dtype=FLOAT32, shape=[2, 3], data=bytes(23)),
            "x.data",
            "expected 24 bytes for shape [2, 3], got 23",
        ),
        (
            tensor_pb2.Tensor(dtype=FLOAT32, shape=[2**32 - 1, 3], data=bytes(24)),
            "x.data",
            f"expected {4 * 3 * (2**32 - 1)} bytes for shape [4294967295, 3], got 24",
        ),
        (
            tensor_pb2.Tensor(dtype=FLOAT32, shape=[2, 3], data=b""),
            "x.data",
            "expected 24 bytes for shape [2, 3], got 0",
        ),
    ],
)
def test_a_message_that_lies_is_refused_by_field(message: tensor_pb2.Tensor, field: str, problem: str) -> None:
    with pytest.raises(tensors.TensorError) as caught:
        tensors.decode(message, "x", dtype=torch.float32, shape=(None, 3))
    assert (caught.value.field, caught.value.problem) == (field, problem)
    assert str(caught.value) == f"{field}: {problem}"


@pytest.mark.parametrize(
    ("name", "stored", "resolved"),
    [
        ("auto", torch.bfloat16, torch.bfloat16),
        ("auto", torch.float32, torch.float32),
        ("auto", torch.float16, torch.float32),
        ("bfloat16", torch.float32, torch.bfloat16),
        ("float32", torch.bfloat16, torch.float32),
    ],
)
def test_what_both_services_compute_in(name: str, stored: torch.dtype, resolved: torch.dtype) -> None:
    assert tensors.resolve_dtype(name, stored) is resolved
