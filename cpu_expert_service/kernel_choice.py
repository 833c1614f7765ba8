"""Chooses the kernel: the one that --kernel names, else the fastest that this machine has, by measurement."""

from collections.abc import Sequence
from dataclasses import replace

import structlog
import torch
from typing_extensions import override

from cpu_expert_service import calibration, metrics
from cpu_expert_service.kernel import Kernel, LayerFunction, PyTorchKernel
from cpu_expert_service.native_kernel import NativeKernel, NativeLayer
from cpu_expert_service.settings import Settings
from fiddler.coding import CodedTensor
from fiddler.errors import UserError
from fiddler.expert_math import ExpertWeights, LayerWeights
from fiddler.kernels.cpus import Topology, choose_cpus, number_nodes
from fiddler.kernels.native import Layer, NativeUnavailableError, Pool, available_tiers
from fiddler.kernels.segments.service import Native

_log = structlog.get_logger("cpu_expert_service")
_CALIBRATED_ROWS = (8, 16, 32, 128, 512)
_CALIBRATED_INTERMEDIATE = 256  # features of an expert, so that 512 rows of the largest take a few milliseconds
_SECONDS_PER_TIMING = 0.02


class KernelError(UserError):
    """The kernel that --kernel names cannot run on this machine."""


def build_kernel(settings: Settings, topology: Topology) -> Kernel:
    """The kernel that the settings name; for "auto", the best that this machine has.

    Raises:
        KernelError: The settings name a kernel that this machine does not have.
        CpuListError: The settings name CPUs that this process may not use.
    """
    cpus = choose_cpus(topology, settings.cpus, settings.threads)
    if settings.kernel == "pytorch":
        return PyTorchKernel(len(cpus))
    try:
        tiers = available_tiers()
        if settings.kernel not in ("auto", *tiers):
            raise KernelError(f"--kernel {settings.kernel}: this CPU runs only {', '.join(tiers)}")
        if settings.kernel == "auto" and len(tiers) == 1:  # the scalar one, which is slower than PyTorch
            _log.warning("experts computed by PyTorch", reason="no native kernel has code for this CPU's vectors")
            return PyTorchKernel(len(cpus))
        pool = Pool(cpus, number_nodes(topology, cpus))
    except NativeUnavailableError as error:
        if settings.kernel != "auto":
            raise KernelError(f"--kernel {settings.kernel}: {error}") from error
        _log.warning("experts computed by PyTorch, which is slower", reason=str(error))
        return PyTorchKernel(len(cpus))
    if settings.kernel == "auto":
        return AutoKernel(NativeKernel(pool, tiers[-1]), PyTorchKernel(len(cpus)))
    return NativeKernel(pool, settings.kernel)


class AutoKernel(Kernel):
    """The native kernel, and PyTorch's for messages that calibration found it to compute faster: large ones."""

    def __init__(self, native: NativeKernel, pytorch: PyTorchKernel) -> None:
        self.name = native.name
        self.num_threads = native.num_threads
        self.native = native
        self.pytorch_from_rows: int | None = None
        """Rows per expert from which on PyTorch computes; None if it never does."""
        self._pytorch = pytorch

    @override
    def prepare(self, layer: LayerWeights) -> "AutoLayer":
        return AutoLayer(self, self.native.prepare(layer), self._pytorch.prepare(layer), len(layer.experts))

    def close(self) -> None:
        """Ends the native kernel's threads."""
        self.native.close()

    def calibrate(self, layer: LayerWeights, dtype: torch.dtype) -> list[calibration.Timing]:
        """Finds from how many rows on PyTorch is faster, by timing a part of an expert."""
        if isinstance(layer.experts[0].up, CodedTensor):
            return []  # PyTorch decodes every matrix anew, so that it is never the faster one
        part = replace(layer, experts=tuple(_part(expert) for expert in layer.experts[:2]))
        kernels: dict[str, LayerFunction] = {
            "pytorch": self._pytorch.prepare(part),
            self.name: self.native.prepare(part),
        }
        timings = [
            calibration.time_kernel(name, compute, layer=part, rows=rows, dtype=dtype, seconds=_SECONDS_PER_TIMING)
            for rows in _CALIBRATED_ROWS
            for name, compute in kernels.items()
        ]
        seconds = {(timing.kernel, timing.rows): timing.seconds for timing in timings}
        self.pytorch_from_rows = calibration.crossing(
            _CALIBRATED_ROWS, lambda rows: seconds[self.name, rows], lambda rows: seconds["pytorch", rows]
        )
        return timings


class AutoLayer:
    """A LayerFunction of both kernels."""

    def __init__(self, kernel: AutoKernel, native: NativeLayer, pytorch: LayerFunction, num_experts: int) -> None:
        self.native = native
        self._kernel = kernel
        self._pytorch = pytorch
        self._num_experts = num_experts

    @property
    def pytorch_from_assignments(self) -> int | None:
        """Rows x experts per row from which on PyTorch computes; None if it never does."""
        # takes rows to be spread evenly over the experts: counting them would cost more than it gains
        least = self._kernel.pytorch_from_rows
        return None if least is None else least * self._num_experts

    def __call__(self, hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
        """Computes a message with the faster one."""
        least = self.pytorch_from_assignments
        faster = self.native if least is None or expert_ids.numel() < least else self._pytorch
        return faster(hidden, expert_ids, routing_weights)


def native_computation(kernel: Kernel, layers: Sequence[LayerFunction]) -> Native | None:
    """What of prepared layers the library computes without Python; None if PyTorch alone computes."""
    native = native_kernel_of(kernel)
    if native is None:
        return None
    descriptions: list[Layer] = []
    most_assignments: list[int | None] = []
    for layer in layers:
        least = layer.pytorch_from_assignments if isinstance(layer, AutoLayer) else None
        computed = layer.native if isinstance(layer, AutoLayer) else layer
        assert isinstance(computed, NativeLayer)
        descriptions.append(computed.description)
        most_assignments.append(None if least is None else least - 1)
    return Native(native.pool, native.tier, tuple(descriptions), tuple(most_assignments))


def _part(expert: ExpertWeights) -> ExpertWeights:
    """The first intermediate features of an expert; its outputs, and so their bias, are whole."""
    cut = {name: tensor[:_CALIBRATED_INTERMEDIATE] for name, tensor in expert.tensors() if not name.startswith("down")}
    assert isinstance(expert.down, torch.Tensor)
    return replace(expert, **cut, down=expert.down[:, :_CALIBRATED_INTERMEDIATE])


def native_kernel_of(kernel: Kernel) -> NativeKernel | None:
    """The native kernel in use; None if PyTorch alone computes."""
    native = kernel.native if isinstance(kernel, AutoKernel) else kernel
    return native if isinstance(native, NativeKernel) else None


def calibrate(kernel: Kernel, layers: Sequence[LayerWeights], dtype: torch.dtype) -> None:
    """Measures the kernel, publishes the figures, and lets an AutoKernel choose. The weights should be in memory."""
    native = native_kernel_of(kernel)
    if native is None:
        return
    layer = layers[len(layers) // 2]
    timings = kernel.calibrate(layer, dtype) if isinstance(kernel, AutoKernel) else []
    memory = calibration.read_bytes_per_second(native.pool, layers)
    one = calibration.time_kernel(
        native.name, native.prepare(layer), layer=layer, rows=1, dtype=dtype, seconds=_SECONDS_PER_TIMING * 2
    )
    achieved = layer.experts[0].nbytes / one.seconds
    for timing in (one, *timings):
        metrics.KERNEL_SECONDS.labels(timing.kernel, timing.rows).set(timing.seconds)
    metrics.KERNEL_READ_BANDWIDTH.set(achieved)
    # reading alone is slower than the kernel if others used the CPUs meanwhile, or if caches hold an expert
    metrics.MEMORY_READ_BANDWIDTH.set(max(memory, achieved))
    _log.info(
        "kernel calibrated",
        kernel=native.name,
        read_gb_per_second=round(achieved / 1e9, 1),
        memory_gb_per_second=round(memory / 1e9, 1) if memory >= achieved else None,
        pytorch_from_rows_of_an_expert=kernel.pytorch_from_rows if isinstance(kernel, AutoKernel) else None,
    )
