"""Linear layers on the native kernels: rows times a matrix that is kept plain or in codes."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import torch

from fiddler.coding import CodedTensor
from fiddler.expert_math import Matrix
from fiddler.kernels import matrices, native
from fiddler.kernels.cpus import choose_cpus, number_nodes, read_topology
from fiddler.kernels.native import NativeError, NativeUnavailableError, Pool, Product, available_tiers, check

LinearFunction = Callable[[torch.Tensor], torch.Tensor]
"""Rows [rows, inputs], of bfloat16 or float32, on the CPU -> [rows, outputs] of the same dtype."""
LinearFunctions = Callable[[torch.Tensor], list[torch.Tensor]]
"""The same rows -> [rows, outputs] of each of several matrices."""
MOST_TOGETHER: Final = 4
"""Matrices that one call multiplies: FIDDLER_MOST_PRODUCTS of abi.h."""

_DTYPES = (torch.float32, torch.bfloat16)


class LinearKernel:
    """One tier of the native library on one pool of threads. Threads that call at the same time take turns."""

    def __init__(self, pool: Pool, tier: str) -> None:
        self.pool = pool
        self.tier = tier
        self.lock = threading.Lock()
        """Held by whoever computes on the pool."""

    def prepare(self, weight: Matrix, bias: torch.Tensor | None = None) -> LinearFunction:
        """Describes a matrix to the library.

        Args:
            weight: [outputs, inputs], on the CPU.
            bias: [outputs], of any floating dtype.

        Returns:
            What multiplies rows with it. Sums are of float32, rounded once. It keeps the tensors alive.

        Raises:
            NativeError: The matrix or the bias cannot be computed; the text says why.
        """
        multiply = self._bind([describe(weight, bias)])
        return lambda rows: multiply(rows)[0]

    def prepare_together(self, linears: Sequence[tuple[Matrix, torch.Tensor | None]]) -> LinearFunctions:
        """Describes matrices that the same rows are multiplied with, so that threads are woken once for all of them.

        Args:
            linears: Up to MOST_TOGETHER weights [outputs, inputs] and biases [outputs], as `prepare` takes them.

        Returns:
            What `prepare` returns, for all of them.

        Raises:
            NativeError: A matrix or a bias cannot be computed, or sizes of inputs differ; the text says why.
        """
        products = [describe(weight, bias) for weight, bias in linears]
        if len({product.inputs for product in products}) != 1 or len(products) > MOST_TOGETHER:
            raise NativeError(f"up to {MOST_TOGETHER} matrices of the same inputs are multiplied together")
        return self._bind(products)

    def _bind(self, products: Sequence[Product]) -> LinearFunctions:
        multiply, numbers, lock = native.load().fiddler_multiply, matrices.dtype_numbers(), self.lock
        pointers = (ctypes.POINTER(Product) * len(products))(*map(ctypes.pointer, products))
        tier, pool, count, inputs = native.tiers().index(self.tier), self.pool, len(products), products[0].inputs
        sizes = [product.outputs for product in products]

        def compute(rows: torch.Tensor) -> list[torch.Tensor]:
            if rows.dim() != 2 or rows.shape[1] != inputs or rows.dtype not in _DTYPES:
                raise matrices.refusal("rows", f"bfloat16 or float32 [rows, {inputs}]", rows)
            rows = rows.contiguous()
            number, address, dtype = len(rows), rows.data_ptr(), numbers[rows.dtype]
            outputs = [torch.empty(number, size, dtype=rows.dtype) for size in sizes]
            with lock:
                for product, output in zip(products, outputs, strict=True):
                    product.rows, product.input, product.output = number, address, output.data_ptr()
                    product.input_dtype = product.output_dtype = dtype
                status = multiply(pool.handle, tier, pointers, count)
            check(status)
            return outputs

        return compute


def describe(weight: Matrix, bias: torch.Tensor | None) -> Product:
    """A linear layer as C++ sees it, without rows.

    Args:
        weight: [outputs, inputs], on the CPU.
        bias: [outputs], of any floating dtype.

    Raises:
        NativeError: The matrix or the bias cannot be computed; the text says why.
    """
    outputs, inputs = shape = matrices.shape_of("weight", weight, "outputs, inputs")
    borrowed: list[Any] = [weight]
    product = Product(outputs=outputs, inputs=inputs, weight_dtype=matrices.format_number(weight))
    product.weights = matrices.describe("weight", [weight], like=weight, shape=shape, borrowed=borrowed)
    if bias is not None:
        if bias.shape != (outputs,):
            raise matrices.refusal("bias", f"float32 [{outputs}]", bias)
        widened = bias.detach().to(torch.float32).contiguous()
        borrowed.append(widened)
        product.weights.biases = matrices.addresses([widened], borrowed)
    product.borrowed = borrowed
    return product


@lru_cache
def shared_kernel(num_threads: int) -> LinearKernel | None:
    """The process's kernel for its linear layers, whose threads are started once and stay.

    Args:
        num_threads: How many threads compute; no more than the process may use.

    Returns:
        None if there is no native library, or if it has no code for this CPU's vectors: PyTorch is then faster.
    """
    try:
        tiers = available_tiers()
        if len(tiers) == 1:
            return None
        topology = read_topology()
        cpus = choose_cpus(topology, threads=num_threads)
        return LinearKernel(Pool(cpus, number_nodes(topology, cpus)), tiers[-1])
    except NativeUnavailableError:
        return None


def can_compute(weight: CodedTensor) -> bool:
    """Whether the library multiplies with a coded matrix on the CPU as it is stored."""
    try:
        matrices.describe("weight", [weight], like=weight, shape=weight.shape, borrowed=[])
    except native.NativeError:
        return False
    return True
