"""What surrounds the programs: versions, ports, the sockets' directory, Docker, and WSL."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final

from fiddler import __version__
from fiddler.sizes import format_bytes
from fiddler.transport import directories
from fiddler.transport.ports import PortTakenError, check_free
from fiddler_checkup import packages
from fiddler_checkup.doctor.finding import Finding, note, ok, problem, warning

PORTS: Final = {50051: "gRPC", 9100: "the GPU service's /metrics", 9101: "the CPU expert service's", 8000: "HTTP"}
"""The ports that are used unless flags say otherwise."""
_LIBRARIES: Final = ("torch", "transformers", "grpcio", "numpy")
_SECONDS: Final = 10.0
_LEAST_DISK: Final = 60 * 2**30
Run = Callable[..., str | None]


def output_of(*command: str) -> str | None:
    """The output of a command; None if it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> list[Finding]:
    """Of this project, Python and the libraries."""
    found, missing = [f"fiddler {__version__}", f"Python {platform.python_version()}"], []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        command = f"`{sys.executable} -m pip install {' '.join(missing)}`"
        return [problem("versions", f"{', '.join(missing)} not installed", command)]
    return [
        ok("versions", ", ".join([*found, f"Linux {platform.release()}" if sys.platform == "linux" else sys.platform]))
    ]


def own_packages() -> Finding:
    """Whether what is imported is this project's."""
    if found := packages.troubles():
        return problem("packages", "; ".join(found), packages.ADVICE)
    return ok("packages", f"{len(packages.PACKAGES)}, in {Path(packages.__file__).parents[1]}, and no one else's")


def ports() -> list[Finding]:
    """One finding for all that are free, and one for each that is not."""
    taken = []
    for port, purpose in PORTS.items():
        try:
            check_free("", f"127.0.0.1:{port}")
        except PortTakenError as error:
            text = str(error).removeprefix(": ").partition("; ")[0]
            taken.append(warning("ports", f"{port} ({purpose}): {text}", "stop it, or choose another port by flag"))
    free = ", ".join(str(port) for port in PORTS if not any(f"{port} (" in finding.text for finding in taken))
    return [*taken, *([ok("ports", f"{free} free")] if free else [])]


def sockets(directory: Path | None = None) -> Finding:
    """Whether the socket between the services can be made in the directory for temporary files."""
    directory = directory or Path(tempfile.gettempdir())
    if not os.access(directory, os.W_OK | os.X_OK):
        return problem(
            "sockets", f"{directory} cannot be written by user {os.getuid()}", "set TMPDIR to another directory"
        )
    try:
        trouble = directories.problem_of(directory / "fiddler" / "experts.sock")
    except OSError as error:
        trouble = str(error)
    return (
        problem("sockets", trouble, "set TMPDIR to another directory") if trouble else ok("sockets", f"in {directory}")
    )


def disk(directory: Path | None = None) -> Finding:
    """The room for models in the Hugging Face cache's file system."""
    directory = directory or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    place = next(each for each in (directory, *directory.parents) if each.exists())
    free = shutil.disk_usage(place).free
    text = f"{format_bytes(free)} free for models ({place})"
    if free < _LEAST_DISK:
        return warning(
            "disk", text, "HF_HOME names another directory; Qwen3-30B-A3B takes 57 GiB, in int4 about 18 GiB"
        )
    return ok("disk", text)


def docker(run: Run = output_of, *, has_gpu: bool = False) -> list[Finding]:
    """Docker's engine, Compose, and the runtime for GPUs. Only `docker compose up` needs them."""
    if shutil.which("docker") is None and run is output_of:
        return [note("Docker", "not installed; only `docker compose up` needs it")]
    engine = run("docker", "version", "--format", "{{.Server.Version}}")
    if not engine:
        return [
            warning(
                "Docker", "the engine does not answer", "start it, or join its group: `sudo usermod -aG docker $USER`"
            )
        ]
    compose = run("docker", "compose", "version", "--short")
    if not compose:
        return [warning("Docker", f"engine {engine}, without Compose v2", "install docker-compose-plugin")]
    findings = [ok("Docker", f"engine {engine}, Compose {compose}")]
    if has_gpu:
        findings.append(_runtime(run("docker", "info", "--format", "{{json .}}")))
    return findings


def _runtime(info: str | None) -> Finding:
    try:
        known = json.loads(info or "{}")
    except ValueError:
        known = {}
    if "nvidia" in known.get("Runtimes", {}) or any(
        "nvidia" in str(each) for each in known.get("DiscoveredDevices") or ()
    ):
        return ok("Docker GPU", "the NVIDIA runtime is there: compose.gpu.yaml works")
    advice = (
        "install nvidia-container-toolkit, then `sudo nvidia-ctk runtime configure --runtime=docker` and restart Docker"
    )
    return warning("Docker GPU", "the engine has no NVIDIA runtime", advice)


def wsl(root: Path = Path("/")) -> list[Finding]:
    """What differs in Windows' subsystem for Linux."""
    try:
        is_wsl = "microsoft" in (root / "proc/version").read_text().lower()
    except OSError:
        is_wsl = False
    if not is_wsl:
        return []
    text = "Windows gives this system half of the memory, and reads files under /mnt/c slowly"
    advice = "set memory= in %UserProfile%\\.wslconfig, keep models in the Linux file system, and install the "
    advice += "driver in Windows only"
    return [note("WSL 2", text, advice)]
