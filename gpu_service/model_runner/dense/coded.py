"""Linear layers whose weights stay in codes, and tied embeddings that read rows of the same codes."""

from collections.abc import Iterator
from typing import Final

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import override

from fiddler.coding import CodedTensor, dequantize
from fiddler.kernels.linear import LinearFunction, LinearKernel, can_compute
from gpu_service.model_runner.dense.siblings import FEW_ROWS, Siblings

_DECODED_BYTES: Final = 64 * 2**20
"""Of decoded weights at a time, if there is no kernel: a matrix is multiplied some outputs at a time."""


class CodedModule(nn.Module):
    """Holds a coded matrix in buffers, so that it moves with the module, and is no parameter."""

    def __init__(self, coded: CodedTensor, dtype: torch.dtype) -> None:
        super().__init__()
        planes = coded.planes()
        # without the planes themselves, which would otherwise stay where they are when the module moves
        self._described = coded.with_planes({name: plane.new_empty(0) for name, plane in planes.items()})
        self._dtype = dtype
        for name, plane in planes.items():
            self.register_buffer(f"weight_{name}", plane, persistent=False)

    @property
    def coded(self) -> CodedTensor:
        """The matrix [outputs, inputs], where the module is."""
        return self._described.with_planes({name: getattr(self, f"weight_{name}") for name in self._described.planes()})

    @property
    def kind(self) -> str:
        """What a weight is stored as, e.g. "int8"."""
        return self._described.coding.kind

    @property
    def weight(self) -> torch.Tensor:
        """The decoded matrix, made anew: for code of models that reads a layer's weight itself."""
        return dequantize(self.coded, self._dtype)


class CodedLinear(CodedModule):
    """A linear layer whose weight stays in codes.

    On the CPU the native kernels multiply from the codes. Elsewhere some outputs are decoded at a time, rounded to the
    dtype of the rows, and multiplied as plain ones.
    """

    def __init__(self, coded: CodedTensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__(coded, dtype)
        self.out_features, self.in_features = coded.shape
        self.bias = bias
        self._multiply: LinearFunction | None = None
        self._bias_address = 0
        self.siblings: Siblings | None = None
        """Layers that are multiplied together with this one."""

    def prepare(self, kernel: LinearKernel | None) -> None:
        """Multiplies by a kernel from now on. To be called once the module is where it stays."""
        self._multiply = None
        coded = self.coded
        if kernel is not None and coded.device.type == "cpu" and can_compute(coded):
            self._multiply = kernel.prepare(coded, self.bias)
            self._bias_address = self._address_of_bias()

    @property
    def is_native(self) -> bool:
        """Whether the native kernels multiply with it."""
        return self._multiply is not None

    @property
    def matrix(self) -> CodedTensor:
        """[outputs, inputs], as the kernels take it."""
        return self.coded

    @override
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Input times the transposed weight plus the bias, [..., out_features], as nn.Linear computes it."""
        rows = input.reshape(-1, self.in_features)
        # some models replace the bias of a layer while they call it
        if self._multiply is not None and self._bias_address == self._address_of_bias():
            siblings = self.siblings if len(rows) <= FEW_ROWS else None
            output = self._multiply(rows) if siblings is None else siblings.output(self, input)
        else:
            output = torch.cat([functional.linear(rows, *part) for part in self._parts(rows.dtype)], dim=-1)
        return output.view(*input.shape[:-1], self.out_features)

    @override
    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._described.coding.name}"

    def _address_of_bias(self) -> int:
        return 0 if self.bias is None else self.bias.data_ptr()

    def _parts(self, dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Decoded weights and the bias of some outputs after others."""
        coded = self.coded
        step = max(1, _DECODED_BYTES // (self.in_features * dtype.itemsize))
        for begin in range(0, self.out_features, step):
            end = min(begin + step, self.out_features)
            yield dequantize(coded, dtype, begin, end), None if self.bias is None else self.bias[begin:end]


class CodedEmbedding(CodedModule):
    """Embeddings that are rows of a coded matrix, which a head is tied to."""

    def __init__(self, coded: CodedTensor, like: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__(coded, dtype)
        self.num_embeddings, self.embedding_dim = coded.shape
        self.padding_idx = like.padding_idx

    @override
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[...] ids -> [..., embedding_dim]."""
        rows = dequantize(self.coded.outputs(input.reshape(-1)), self._dtype)
        return rows.view(*input.shape, self.embedding_dim)
