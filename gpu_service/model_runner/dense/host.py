"""Makes the dense part faster on the host, for --device cpu: decisions 18, 32 and 33."""

from contextlib import AbstractContextManager, nullcontext
from typing import Final, cast

import torch
from torch import nn

from fiddler.kernels.attention import AttentionKernel
from fiddler.kernels.linear import LinearFunction, LinearKernel, shared_kernel
from gpu_service.model_runner.attention.functions import AttentionFunctions
from gpu_service.model_runner.attention.host import HostAttention
from gpu_service.model_runner.dense import blocks, norms, routers, siblings
from gpu_service.model_runner.dense.coded import CodedLinear
from gpu_service.model_runner.dense.siblings import FEW_ROWS, Siblings
from gpu_service.model_runner.threads import as_few_as_pay

FEW_PRODUCTS: Final = 2**20
"""Products in one linear layer up to which one thread is fastest: waking another takes longer than half of them."""
NATIVE_ROWS: Final = 64
"""Rows up to which the native kernels multiply plain bfloat16 weights; PyTorch multiplies more of them."""


class RowLinear(nn.Linear):
    """A bfloat16 linear layer, a few rows of which are multiplied as weights are read: once, by all threads.

    The native kernels do so if there are any, otherwise, for a single row and without a bias, PyTorch's product of a
    matrix and a vector, which reads the matrix faster than its product of two matrices does. All sum in float32.
    """

    _multiply: LinearFunction | None
    _addresses: tuple[int, int]
    siblings: Siblings | None
    """Layers that are multiplied together with this one."""

    def prepare(self, kernel: LinearKernel | None) -> None:
        """Multiplies few rows by a kernel from now on."""
        self._multiply = kernel.prepare(self.weight, self.bias) if kernel else None
        self._addresses = self._where()
        self.siblings = None

    @property
    def is_native(self) -> bool:
        """Whether the native kernels multiply a few rows with it."""
        return self._multiply is not None

    @property
    def matrix(self) -> torch.Tensor:
        """[outputs, inputs], as the kernels take it."""
        return self.weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Input times the transposed weight plus the bias, [..., out_features], as nn.Linear computes it."""
        # some models replace the tensors of a layer while they call it
        if self._multiply is not None and input.numel() <= NATIVE_ROWS * self.in_features and self._is_due(input):
            together = self.siblings if input.numel() <= FEW_ROWS * self.in_features else None
            rows = input.reshape(-1, self.in_features)
            output = self._multiply(rows) if together is None else together.output(self, input)
        elif self.bias is None and input.numel() == self.in_features:
            output = torch.mv(self.weight, input.reshape(-1))
        else:
            return super().forward(input)
        return output.view(*input.shape[:-1], self.out_features)

    def _is_due(self, input: torch.Tensor) -> bool:
        return input.dtype is torch.bfloat16 and self._addresses == self._where()

    def _where(self) -> tuple[int, int]:
        return self.weight.data_ptr(), 0 if self.bias is None else self.bias.data_ptr()


def install(module: nn.Module, kernel: LinearKernel | None) -> None:
    """Turns every linear layer that can be a RowLinear into one, in place; layers in codes are given the kernel.

    The weights are not moved.

    Args:
        module: The model, on the CPU.
        kernel: None if the CPU has no native kernel that is faster than PyTorch.
    """
    for child in module.modules():
        if isinstance(child, CodedLinear):
            child.prepare(kernel)
        elif type(child) is nn.Linear and child.weight.dtype is torch.bfloat16 and (kernel or child.bias is None):
            child.__class__ = RowLinear
            cast("RowLinear", child).prepare(kernel)
    if kernel is not None:
        siblings.join(module, kernel)
        norms.install(module)
        routers.install(module, kernel)


class Host:
    """Computes the dense part of a model that is on the CPU: its kernels, and the threads that PyTorch uses."""

    def __init__(self, module: nn.Module) -> None:
        """Installs what computes its linear layers.

        Args:
            module: The model, on the CPU.
        """
        self._module = module
        self._kernel = shared_kernel(torch.get_num_threads())
        install(module, self._kernel)
        self._products_per_row = products_per_row(module)

    def attention(self, functions: AttentionFunctions, dtype: torch.dtype) -> HostAttention | None:
        """What computes the attention of decode steps, if it is not PyTorch.

        Layers whose code is known then compute all that comes before their experts in one call.

        Args:
            functions: Of the model.
            dtype: Of keys and values.
        """
        if self._kernel is None or dtype is not torch.bfloat16:
            return None
        attention = HostAttention(functions, AttentionKernel(self._kernel))
        blocks.install(self._module, attention, self._kernel)
        return attention

    def threads_for(self, num_tokens: int) -> AbstractContextManager[None]:
        """The threads of PyTorch that pay for a forward of so many tokens."""
        num_products = num_tokens * self._products_per_row
        return as_few_as_pay(num_products, FEW_PRODUCTS) if num_products else nullcontext()


def products_per_row(module: nn.Module) -> int:
    """Products of one row with one of the module's linear layers, on average; 0 if the module has none."""
    layers = [child for child in module.modules() if isinstance(child, nn.Linear | CodedLinear)]
    return sum(layer.in_features * layer.out_features for layer in layers) // len(layers) if layers else 0
