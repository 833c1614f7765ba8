"""What is measured: the device, the model's size, and the CPU expert service beside it."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from benchmarks.harness import mixtral
from benchmarks.harness.disk import check_missing
from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.backend import RemoteExperts
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.errors import ExpertServiceError, HandshakeError
from tests.support.large_checkpoint import write_mixtral

_MAX_MESSAGE_BYTES = 2**27
_TIMEOUT_SECONDS = 60.0
_START_SECONDS = 120.0
_LAST = "model.safetensors.index.json"
"""The file of a checkpoint that is written last."""


@dataclass(frozen=True)
class Size:
    """The model, and what it is asked."""

    hidden: int
    inner: int
    num_layers: int
    num_heads: int
    vocab_size: int
    prompts: tuple[int, ...]
    beams: tuple[int, ...]
    num_tokens: int
    resident_share: float
    """Of the experts: what 24 GB hold of the whole model beside its dense part and the keys and values."""

    def with_layers(self, num_layers: int) -> "Size":
        """The same with so many layers."""
        return replace(self, num_layers=num_layers)

    @property
    def num_bytes(self) -> int:
        """Of the model's files, nearly: experts, attention with few heads for keys and values, the vocabulary twice."""
        layer = 8 * 3 * self.hidden * self.inner + 5 * self.hidden**2 // 2
        return 2 * (self.num_layers * layer + 2 * self.vocab_size * self.hidden)

    @property
    def max_context(self) -> int:
        """Positions that the longest prompt and its continuation need."""
        return max(self.prompts) + 2 * self.num_tokens


LARGE: Final = Size(4096, 14336, 8, 32, 32000, (512, 4096), (4, 8, 16), 32, 56 / 256)
"""Of Mixtral-8x7B's 256 experts of 352 MB, 24 GB hold about 56."""
SMALL: Final = Size(64, 96, 2, 4, 320, (8, 12), (2,), 1, 56 / 256)


@dataclass(frozen=True)
class Setting:
    """One run."""

    device: torch.device
    size: Size
    checkpoint: Path
    is_real: bool
    """Whether figures mean something: not on an imitation, and not if everything is small."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the dense part."""
        return torch.bfloat16 if self.is_real else torch.float32

    @property
    def card(self) -> str:
        """What is measured, for the results."""
        if self.device.type == "cpu":
            return "no card"
        return torch.cuda.get_device_name(self.device)

    @property
    def _directory(self) -> Path:
        return self.checkpoint / f"mixtral_{self.size.hidden}_{self.size.num_layers}"

    @property
    def _is_written(self) -> bool:
        return (self._directory / _LAST).exists()

    def check_disk(self) -> None:
        """Checks that there is room for the model.

        Raises:
            typer.BadParameter: There is not.
        """
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        check_missing(
            self.checkpoint,
            {self._directory.name: self.size.num_bytes},
            remedy=f"{mixtral.REMEDY}, or fewer --layers",
            last=_LAST,
        )

    def write(self) -> Path:
        """Writes the model if it is missing."""
        size, directory = self.size, self._directory
        if not self._is_written:
            directory.mkdir(parents=True, exist_ok=True)
            write_mixtral(
                directory,
                hidden=size.hidden,
                inner=size.inner,
                num_layers=size.num_layers,
                num_heads=size.num_heads,
                vocab_size=size.vocab_size,
                max_positions=size.max_context,
            )
        return directory

    def synchronize(self) -> None:
        """Waits until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def experts(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[RemoteExperts]:
        """The CPU expert service in a process of its own; if everything is small, the same in this process."""
        if not self.is_real:
            yield InProcessExperts(checkpoint)
            return
        with tempfile.TemporaryDirectory() as directory:
            address = f"unix:{directory}/experts.sock"
            name = str(dtype).removeprefix("torch.")
            command = [sys.executable, "-m", "cpu_expert_service", "--model", str(checkpoint.directory)]
            flags = ["--listen", address, "--metrics-port", "0", "--dtype", name]
            log = Path(directory, "experts.log")
            with log.open("w") as errors:
                process = subprocess.Popen(
                    [*command, *flags, "--max-message-bytes", str(_MAX_MESSAGE_BYTES)], stderr=errors
                )
            client = ExpertClient(
                address,
                dtype,
                timeout_seconds=_TIMEOUT_SECONDS,
                max_message_bytes=_MAX_MESSAGE_BYTES,
                weight_format=checkpoint.weight_format,
            )
            try:
                _connect(client, checkpoint, process, log)
                yield client
            finally:
                client.close()
                process.terminate()
                process.wait()


def _connect(client: ExpertClient, checkpoint: Checkpoint, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            client.connect(checkpoint.fingerprint, 1.0)
            return
        except HandshakeError:
            raise
        except ExpertServiceError:
            if (status := process.poll()) is not None:
                last = (log.read_text().strip().splitlines() or ["it wrote nothing"])[-1]
                raise RuntimeError(f"the CPU expert service ended with status {status}: {last}") from None
            if time.monotonic() > deadline:
                raise
            with contextlib.suppress(InterruptedError):
                time.sleep(0.2)
