"""Peak operations per second of the CPU's vector units, measured by loops in C that touch no memory."""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

_SOURCE = Path(__file__).with_name("peak.c")
_ACCUMULATORS = 12
_STEPS = 200_000
_TURNS = 200
_STEP_OPERATIONS = {
    "fma_avx2": 2 * 8 * _ACCUMULATORS,
    "fma_avx512": 2 * 16 * _ACCUMULATORS,
    "dot_avx512_bf16": 2 * 32 * _ACCUMULATORS,
    "tiles_amx_bf16": 2 * 16 * 16 * 32 * 4,
}
_TIERS = {
    "avx2": ("fma_avx2",),
    "avx512": ("fma_avx512",),
    "avx512_bf16": ("fma_avx512", "dot_avx512_bf16"),
    "amx_bf16": ("fma_avx512", "dot_avx512_bf16", "tiles_amx_bf16"),
}


class Peak:
    """The compiled loops for a tier; none if there is no compiler or no loop for the tier."""

    def __init__(self, cpus: Sequence[int], tier: str) -> None:
        """Compiles them.

        Args:
            cpus: Each of them runs the loops.
            tier: The tier of the kernel that is compared with them.
        """
        self._cpus = cpus
        compiler = shutil.which("cc") or shutil.which("gcc")
        self.names = _TIERS.get(tier, ()) if compiler else ()
        if not self.names:
            return
        with TemporaryDirectory(prefix="fiddler-") as directory:
            path = Path(directory) / "peak.so"
            subprocess.run([str(compiler), "-O2", "-shared", "-fPIC", "-o", str(path), str(_SOURCE)], check=True)
            self._library = ctypes.CDLL(str(path))

    def measure(self) -> dict[str, float]:
        """Operations per second by loop: the best of many short turns of each CPU, summed. All CPUs run at once."""
        return {name: self._measure(name) for name in self.names}

    def _measure(self, name: str) -> float:
        function = getattr(self._library, name)
        function.argtypes, function.restype = (ctypes.c_int64,), ctypes.c_float

        def on_cpu(cpu: int) -> float:
            os.sched_setaffinity(0, {cpu})  # of this thread, which ends with the pool
            seconds = []
            for _ in range(_TURNS):
                began = time.perf_counter()
                function(_STEPS)
                seconds.append(time.perf_counter() - began)
            return _STEP_OPERATIONS[name] * _STEPS / min(seconds)

        with ThreadPoolExecutor(len(self._cpus)) as threads:
            return sum(threads.map(on_cpu, self._cpus))
