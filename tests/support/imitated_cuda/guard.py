"""The device guard that a build of PyTorch without CUDA lacks: it is asked whenever a tensor on "cuda" is indexed."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_SOURCE = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using Guard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;
c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, new Guard());
}
"""


def why_impossible() -> str:
    """Why no device can be imitated in this process; empty if one can."""
    if torch.cuda.is_available():
        return "there is a GPU, and PyTorch's own guard is in place"
    if not _has_cuda() and _compiler() is None:
        return "the imitation of CUDA needs a C++ compiler (c++, g++ or clang++) for its device guard"
    return ""


@functools.cache
def install_guard() -> None:
    """Registers a guard that does nothing, for as long as the process lives. Compiles it, which takes two seconds."""
    if _has_cuda():
        torch._C._ensureCUDADeviceGuardSet()
        return
    compiler = _compiler()
    assert compiler is not None, why_impossible()
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory, "guard.cpp"), Path(directory, "guard.so")
        source.write_text(_SOURCE)
        command = [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}", str(source)]
        subprocess.run([*command, "-o", str(library), f"-L{home / 'lib'}", "-lc10"], check=True)
        ctypes.CDLL(str(library))


def _has_cuda() -> bool:
    return torch.version.cuda is not None


def _compiler() -> str | None:
    return next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
