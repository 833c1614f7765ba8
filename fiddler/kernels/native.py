"""Binds the native library: its structures, its threads, its lists of names, and which of its tiers this CPU has.

It knows addresses and no tensors. Which tensors make up a layer, and whether they fit, is in matrices.py.
"""

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from itertools import count, pairwise
from typing import Any, NamedTuple

_LIBRARY = "fiddler.kernels._native"


class NativeUnavailableError(RuntimeError):
    """The native library was not built, cannot be loaded, or cannot start its threads."""


class NativeError(ValueError):
    """The native library refused a call. The message says why."""


class Projection(ctypes.Structure):
    """fiddler_projection of abi.h."""

    _fields_ = (
        ("weights", c_void_p),
        ("biases", c_void_p),
        ("out_stride", c_int64),
        ("in_stride", c_int64),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("multipliers", c_void_p),
        ("scales_stride", c_int64),
        ("group_inputs", c_int64),
        ("group_outputs", c_int64),
        ("first_output", c_int64),
        ("scale_kind", c_int32),
    )


class Layer(ctypes.Structure):
    """fiddler_layer of abi.h. It borrows memory: `borrowed` must keep alive what its pointers refer to."""

    borrowed: list[Any]

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


class Product(ctypes.Structure):
    """fiddler_product of abi.h. It borrows memory: `borrowed` must keep alive what its pointers refer to."""

    borrowed: list[Any]

    _fields_ = (
        ("weights", Projection),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("rows", c_int64),
        ("input", c_void_p),
        ("output", c_void_p),
        ("weight_dtype", c_int32),
        ("input_dtype", c_int32),
        ("output_dtype", c_int32),
    )


@cache
def load() -> ctypes.CDLL:
    """The library, with its functions' types.

    Raises:
        NativeUnavailableError: There is none, it does not load, or it was built from other sources.
    """
    found = importlib.util.find_spec(_LIBRARY)
    if found is None or found.origin is None:
        raise NativeUnavailableError("the native library was not built: there was no C++ compiler at installation")
    int32s = POINTER(c_int32)
    try:
        library = ctypes.CDLL(found.origin)
        for name, result, arguments in (
            ("fiddler_pool_create", c_void_p, (int32s, int32s, c_int32, c_int32)),
            ("fiddler_pool_destroy", None, (c_void_p,)),
            ("fiddler_pool_lock", None, (c_void_p,)),
            ("fiddler_pool_unlock", None, (c_void_p,)),
            ("fiddler_tier_name", c_char_p, (c_int32,)),
            ("fiddler_dtype_name", c_char_p, (c_int32,)),
            ("fiddler_code_name", c_char_p, (c_int32,)),
            ("fiddler_scale_name", c_char_p, (c_int32,)),
            ("fiddler_activation_name", c_char_p, (c_int32,)),
            ("fiddler_status_text", c_char_p, (c_int32,)),
            ("fiddler_has_tier", c_int32, (c_int32,)),
            ("fiddler_node_begin", c_int64, (c_int64, c_int32, c_int32)),
            ("fiddler_run", c_int32, (c_void_p, c_int32, c_void_p, c_void_p)),
            ("fiddler_multiply", c_int32, (c_void_p, c_int32, c_void_p, c_int32)),
            ("fiddler_normalize", c_int32, (c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_float, c_int32)),
            ("fiddler_attend", c_int32, (c_void_p, c_int32, c_void_p)),
            ("fiddler_attend_block", c_int32, (c_void_p, c_int32, c_void_p)),
            ("fiddler_attend_and_post", c_int32, (c_void_p, c_int32, *4 * (c_void_p,))),
            ("fiddler_route", c_int32, (c_void_p, c_int32, c_void_p, c_int64, *4 * (c_void_p,))),
            ("fiddler_is_finite", c_int32, (c_void_p, c_int64, c_int32)),
            ("fiddler_read", c_uint64, (c_void_p, c_void_p, c_int64, c_int32)),
            ("fiddler_copy", c_int32, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64)),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except OSError as error:
        raise NativeUnavailableError(f"{found.origin} cannot be loaded: {error}") from error
    except AttributeError as error:
        raise NativeUnavailableError(f"{found.origin} is of another version; install again: {error}") from error
    return library


@cache
def _names(function: str) -> tuple[str, ...]:
    """The names that a function of the library gives to 0, 1, 2 and so on."""
    name_of = getattr(load(), function)
    return tuple(name.decode() for name in iter(map(name_of, count()).__next__, None))


def tiers() -> tuple[str, ...]:
    """All tiers of the library, slowest first; a tier's place is its number.

    Raises:
        NativeUnavailableError: There is no native library.
    """
    return _names("fiddler_tier_name")


def dtypes() -> tuple[str, ...]:
    """The formats that weights may be stored in, by number."""
    return _names("fiddler_dtype_name")


def codes() -> tuple[str, ...]:
    """The codes of 8 and 4 bits that weights may be stored in, numbered on from the dtypes."""
    return _names("fiddler_code_name")


def scale_kinds() -> tuple[str, ...]:
    """How scales of codes may be stored, by number."""
    return _names("fiddler_scale_name")


def activations() -> tuple[str, ...]:
    """The functions between an expert's projections, by number."""
    return _names("fiddler_activation_name")


def available_tiers() -> tuple[str, ...]:
    """The tiers that this CPU and its operating system run, slowest first.

    Raises:
        NativeUnavailableError: There is no native library.
    """
    return tuple(name for tier, name in enumerate(tiers()) if load().fiddler_has_tier(tier))


def node_ranges(num_outputs: int, num_nodes: int) -> list[tuple[int, int]]:
    """The outputs [begin, end) of a matrix that each node's threads compute.

    Raises:
        NativeUnavailableError: There is no native library.
    """
    begin = load().fiddler_node_begin
    return list(pairwise(begin(num_outputs, node, num_nodes) for node in range(num_nodes + 1)))


class Range(NamedTuple):
    """Bytes to copy from one place in memory to another."""

    to: int
    """An address, as is the next one."""
    source: int
    num_bytes: int
    node: int
    """The node whose threads copy, and whose memory it becomes if nothing has touched it yet."""


class Pool:
    """Pinned threads, one for each CPU. Only one thread at a time may use a pool; a second one is refused."""

    def __init__(self, cpus: Sequence[int], nodes: Sequence[int] | None = None, spin_microseconds: int = 50) -> None:
        """Starts the threads.

        Args:
            cpus: Numbers of CPUs that this process may use, without repeats.
            nodes: Their NUMA nodes, numbered from 0; None if all are of one node.
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

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until no other thread computes on this pool, in here or in the library, and holds it meanwhile."""
        self._library.fiddler_pool_lock(self.handle)
        try:
            yield
        finally:
            self._library.fiddler_pool_unlock(self.handle)

    def read(self, address: int, num_bytes: int, streams: int) -> None:
        """Reads memory once, to measure bandwidth."""
        self._library.fiddler_read(self.handle, address, num_bytes, streams)

    def copy(self, ranges: Sequence[Range]) -> None:
        """Copies ranges, each by its node's threads."""
        number = len(ranges)
        addresses, sizes, numbers = c_void_p * number, c_int64 * number, c_int32 * number
        to, source, num_bytes, nodes = zip(*ranges, strict=True)
        check(
            self._library.fiddler_copy(
                self.handle, addresses(*to), addresses(*source), sizes(*num_bytes), numbers(*nodes), number
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
        raise NativeError(f"{_names('fiddler_status_text')[status]}{detail}")
