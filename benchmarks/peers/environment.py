"""The peers' virtual environment: packages that this project does not need, kept apart from its own.

llama-cpp-python is compiled here for this CPU, which takes minutes; kt-kernel is a wheel with a library for each kind
of CPU. PyTorch, transformers and safetensors come from the project's environment.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Final

from tqdm import tqdm

LLAMA: Final = "llama-cpp-python==0.3.36"
KTRANSFORMERS: Final = "kt-kernel==0.7.2"
GGUF: Final = "gguf==0.19.0"
VERSIONS: Final = {"llama.cpp": LLAMA, "KTransformers": KTRANSFORMERS, "gguf": GGUF}

_NATIVE: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_CURL=OFF",
)
_NO_AMX: Final = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
_SHARED: Final = "project.pth"
_WITHOUT_AMX: Final = "without-amx"
_CPUINFO: Final = Path("/proc/cpuinfo")


class PeerError(Exception):
    """A peer cannot be installed or run on this machine; the text says why."""


class Environment:
    """A virtual environment in a directory that is kept."""

    def __init__(self, directory: Path) -> None:
        """Makes nothing yet."""
        self.directory = directory
        self.python = directory / "bin" / "python"

    def prepare(self, jobs: int) -> None:
        """Makes the environment and installs gguf and llama.cpp, unless that was done before.

        Args:
            jobs: Compilers at one time.

        Raises:
            PeerError: They cannot be installed.
        """
        if not self.python.exists():
            _run([sys.executable, "-m", "venv", str(self.directory)], "python -m venv")
        if not self._is_installed(GGUF):
            self._install([GGUF])
        if not self._is_installed(LLAMA):
            self._install_bindings()
        if not (self.libraries / "libllama.so").exists():
            self._build(jobs)
        self._share()

    def install_ktransformers(self) -> None:
        """Installs kt-kernel.

        Its own requirement of one version of PyTorch is left out: its library does not link to PyTorch.

        Raises:
            PeerError: There is no wheel for this platform.
        """
        if not self._is_installed(KTRANSFORMERS):
            self._install(["--no-deps", "--only-binary=:all:", KTRANSFORMERS])

    def rebuild_without_amx(self, jobs: int) -> None:
        """Builds llama.cpp again, for a CPU with AMX on which its quantised products crash.

        Raises:
            PeerError: It was built so already, or the CPU has no AMX, so that the crash has another cause.
        """
        if not self.has_amx:
            raise PeerError("it crashes, and not for AMX, which it does not use here")
        (self.directory / _WITHOUT_AMX).touch()
        if not (self.libraries / "libllama.so").exists():
            self._build(jobs)

    @property
    def libraries(self) -> Path:
        """The directory of llama.cpp's libraries, which its bindings take from LLAMA_CPP_LIB_PATH."""
        return self._build_directory / "bin"

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables of what runs in it."""
        return {"LLAMA_CPP_LIB_PATH": str(self.libraries)}

    def run_module(self, arguments: list[str], what: str, cwd: Path) -> None:
        """Runs `python -m` with these arguments in the environment.

        Raises:
            PeerError: It fails.
        """
        _run([str(self.python), "-m", *arguments], what, os.environ | self.settings, cwd=cwd)

    @property
    def has_amx(self) -> bool:
        """Whether llama.cpp was built for a CPU with AMX, and with it."""
        return "amx_int8" in _CPUINFO.read_text() and not (self.directory / _WITHOUT_AMX).exists()

    @property
    def _build_directory(self) -> Path:
        return self.directory / ("build-without-amx" if (self.directory / _WITHOUT_AMX).exists() else "build")

    @property
    def _source(self) -> Path:
        """The unpacked source distribution of llama-cpp-python, which holds llama.cpp's own sources."""
        return self.directory / LLAMA.replace("-", "_").replace("==", "-")

    def _install_bindings(self) -> None:
        """Installs the Python part, and keeps the sources of the rest."""
        if not self._source.exists():
            downloads = self.directory / "dl"
            arguments = ["--no-deps", "--no-binary=llama-cpp-python", "--dest", str(downloads), LLAMA]
            self._install(arguments, command="download")
            with tarfile.open(next(downloads.glob(f"{self._source.name}.tar.gz"))) as archive:
                archive.extractall(self.directory, filter="data")
        self._install(["diskcache", "jinja2", "numpy", "typing-extensions"])
        arguments = ["--no-deps", str(self._source)]
        self._install(arguments, {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"})

    def _build(self, jobs: int) -> None:
        """Compiles llama.cpp; one that was interrupted goes on."""
        flags = [*_NATIVE]
        if (self.directory / _WITHOUT_AMX).exists():
            flags += [f"-DCMAKE_C_FLAGS={_NO_AMX}", f"-DCMAKE_CXX_FLAGS={_NO_AMX}"]
        cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "cmake"
        source, target = self._source / "vendor" / "llama.cpp", str(self._build_directory)
        _run([cmake, "-S", str(source), "-B", target, *flags], "configuring llama.cpp")
        _run(
            [cmake, "--build", target, "--target", "llama", "-j", str(jobs)], f"compiling llama.cpp: {' '.join(flags)}"
        )

    def _install(self, arguments: list[str], settings: dict[str, str] | None = None, command: str = "install") -> None:
        """Runs pip, which does not see the project's packages meanwhile; it would replace them."""
        (self._packages() / _SHARED).unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        pip = [str(self.python), "-m", "pip", command, "--quiet", *arguments]
        _run(pip, f"pip {command} {' '.join(arguments)}", environment | (settings or {}))
        self._share()

    def _is_installed(self, requirement: str) -> bool:
        name, version = requirement.split("==")
        return any(self._packages().glob(f"{name.replace('-', '_')}-{version}.dist-info"))

    def _packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.directory)}))

    def _share(self) -> None:
        """Lets the environment import what the project's has, after what it has itself."""
        (self._packages() / _SHARED).write_text(f"{sysconfig.get_path('purelib')}\n")


def _run(command: list[str], what: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    with tqdm(desc=what, bar_format="{desc}: {elapsed}", disable=None):
        done = subprocess.run(
            command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise PeerError(f"{what} failed: {lines[-1] if lines else f'status {done.returncode}'}")
