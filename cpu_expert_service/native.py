"""The native library, bound: its structures, its threads, and which of its tiers this CPU has.

What a layer is, and which tensors fit together, is native_kernel.py's.
"""

import ctypes
import importlib.util
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Final

TIERS: Final = ("scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16")
"""Slowest first; a tier's place is its number."""

_LIBRARY = "cpu_expert_service._native"
_STATUSES = (
    "",
    "a pointer is null",
    "a size is less than 1",
    "a dtype or an activation is unknown",
    "an expert id is out of range",
    "this CPU does not have the tier",
    "a tensor of the message is not aligned to its elements",
    "another message is being computed",
    "there is not enough memory",
)


class NativeUnavailableError(RuntimeError):
    """The native library was not built, or cannot be loaded."""


class NativeError(ValueError):
    """The native library refused a call; the message says why."""


class Projection(ctypes.Structure):
    """fiddler_projection of abi.h."""

    _fields_ = (
        ("weights", c_void_p),
        ("biases", c_void_p),
        ("out_stride", c_int64),
        ("in_stride", c_int64),
    )


class Layer(ctypes.Structure):
    """fiddler_layer of abi.h."""

    _fields_ = (
        ("num_experts", c_int64),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("weight_dtype", c_int32),
        ("activation", c_int32),
        ("alpha", c_float),
        ("limit", c_float),
        ("gate", Projection),
        ("up", Projection),
        ("down", Projection),
        ("factor", Projection),
    )


class Message(ctypes.Structure):
    """fiddler_message of abi.h."""

    _fields_ = (
        ("rows", c_int64),
        ("experts_per_row", c_int64),
        ("hidden", c_void_p),
        ("expert_ids", c_void_p),
        ("routing_weights", c_void_p),
        ("output", c_void_p),
        ("hidden_dtype", c_int32),
        ("output_dtype", c_int32),
    )


@cache
def load() -> ctypes.CDLL:
    """The library, with its functions' types.

    Raises:
        NativeUnavailableError: There is none, or it does not load.
    """
    found = importlib.util.find_spec(_LIBRARY)
    if found is None or found.origin is None:
        raise NativeUnavailableError("the native library was not built: there was no C++ compiler at installation")
    try:
        library = ctypes.CDLL(found.origin)
    except OSError as error:
        raise NativeUnavailableError(f"{found.origin} cannot be loaded: {error}") from error
    int32s = POINTER(c_int32)
    for name, result, arguments in (
        ("fiddler_pool_create", c_void_p, (int32s, int32s, c_int32, c_int32)),
        ("fiddler_pool_destroy", None, (c_void_p,)),
        ("fiddler_has_tier", c_int32, (c_int32,)),
        ("fiddler_run", c_int32, (c_void_p, c_int32, c_void_p, c_void_p)),
        ("fiddler_read", c_uint64, (c_void_p, c_void_p, c_int64, c_int32)),
        ("fiddler_copy", c_int32, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def available_tiers() -> tuple[str, ...]:
    """The tiers that this CPU and its operating system run, slowest first.

    Raises:
        NativeUnavailableError: There is no native library.
    """
    library = load()
    return tuple(name for tier, name in enumerate(TIERS) if library.fiddler_has_tier(tier))


class Pool:
    """Pinned threads, one for each CPU. Not safe to be used from two threads at a time; a second one is refused."""

    def __init__(self, cpus: Sequence[int], nodes: Sequence[int] | None = None, spin_microseconds: int = 50) -> None:
        """Starts the threads.

        Args:
            cpus: Numbers of CPUs that this process may use, without repeats.
            nodes: Their NUMA nodes, numbered from 0; None where all are one.
            spin_microseconds: How long a thread waits for more work before it sleeps.

        Raises:
            NativeUnavailableError: There is no native library, or the system refuses threads.
        """
        nodes = [0] * len(cpus) if nodes is None else nodes
        if not cpus or len(nodes) != len(cpus) or len(set(cpus)) != len(cpus) or min(nodes) < 0:
            raise NativeError("cpus: at least one, each once, and a node for each")
        self._library = load()
        array = c_int32 * len(cpus)
        self.num_threads = len(cpus)
        self.num_nodes = max(nodes) + 1
        self.handle: int | None = self._library.fiddler_pool_create(
            array(*cpus), array(*nodes), len(cpus), spin_microseconds
        )
        if not self.handle:
            raise NativeUnavailableError(f"the system refuses {len(cpus)} threads")

    def read(self, address: int, num_bytes: int, streams: int) -> None:
        """Reads memory once: what bandwidth is measured with."""
        self._library.fiddler_read(self.handle, address, num_bytes, streams)

    def copy(self, ranges: Sequence[tuple[int, int, int, int]]) -> None:
        """Copies (to, from, bytes, node) ranges, each by its node's threads."""
        count = len(ranges)
        addresses, sizes, numbers = c_void_p * count, c_int64 * count, c_int32 * count
        to, source, num_bytes, nodes = zip(*ranges, strict=True)
        check(
            self._library.fiddler_copy(
                self.handle, addresses(*to), addresses(*source), sizes(*num_bytes), numbers(*nodes), count
            )
        )

    def close(self) -> None:
        """Ends the threads."""
        if self.handle:
            self._library.fiddler_pool_destroy(self.handle)
            self.handle = None


def check(status: int, detail: str = "") -> None:
    """Raises a NativeError for any status but 0."""
    if status:
        raise NativeError(f"{_STATUSES[status]}{detail}")
