"""Pairs of services in real processes, on small checkpoints."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from typing_extensions import override

from fiddler.kernels.native import NativeUnavailableError, available_tiers
from pair import Pair
from tests.support import checkpoints
from tests.support.warm_processes import WarmProcess

DEMO = Path(__file__).parents[2] / "models" / "demo"
_FLOAT32 = ("--dtype", "float32")


def write_tiny(directory: Path, family: str = "mixtral") -> Path:
    """Writes a tiny float32 checkpoint with a tokenizer, and without an end-of-sequence token: tests choose lengths."""
    checkpoints.write(family, directory, eos_token_id=None)
    checkpoints.write_tokenizer(directory)
    return directory


class WarmPair(Pair):
    """A pair whose processes are forked with torch and transformers imported, which saves most of the start.

    Tests of how a process starts and of its memory use a Pair.
    """

    @override
    def _spawn(self, service: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        if service == "http_gateway":  # starts quickly by itself
            return super()._spawn(service, arguments)
        command = [service, *arguments]
        return WarmProcess(command, env=self._environment, stderr=self._log, stdin=subprocess.DEVNULL)


def start(model: Path, *arguments: str, log: IO[bytes] | None = None) -> Pair:
    """A pair on the CPU in float32, not started yet, with more arguments for the GPU service."""
    gpu_arguments = ("--device", "cpu", *_FLOAT32, *arguments)
    return WarmPair(model, gpu_arguments=gpu_arguments, cpu_arguments=_FLOAT32, log=log)


def best_kernel() -> str:
    """The kernel that `--kernel auto` selects on this machine."""
    try:
        tier = available_tiers()[-1]
    except NativeUnavailableError:
        return "pytorch"
    return "pytorch" if tier == "scalar" else tier
