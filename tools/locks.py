"""`python -m tools.locks`: writes requirements/*.lock, what each image installs, with the hashes of all its files.

It asks PyPI, by way of uv. Versions are those of constraints.txt. PyTorch itself is left out: its build, and so its
hash, depends on the index that the Dockerfile's TORCH_INDEX names. What its builds for the CPU need is in.

`make locks` runs it; tests/test_locks.py compares the files with constraints.txt and pyproject.toml.
"""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tools.command_line import run

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"

_GATEWAY = {"fastapi", "fastapi-offline", "httptools", "uvicorn"}
_COMMAND_LINE = {"rich", "typer"}
_MODELS = {"transformers", "huggingface_hub", "tokenizers", "safetensors", "sentencepiece"}
LEFT_OUT = {
    "cpu-expert-service": {"cryptography", *_MODELS, *_COMMAND_LINE, *_GATEWAY},
    "gpu-service": _GATEWAY,
    "http-gateway": {"torch", "numpy", "tqdm", *_MODELS, *_COMMAND_LINE},
}
"""The project's dependencies that an image does without."""

EXTRAS = {"gpu-service": ("router",)}
"""The project's extras that an image has."""

BUILD_TOOLS = ("pip", "scikit-build-core", "cmake", "ninja")
"""What builds the wheel and installs; in no image that runs."""


def requirements(image: str) -> list[str]:
    """What an image needs directly, as in pyproject.toml; PyTorch is replaced by what it needs."""
    if image == "tools":
        return list(BUILD_TOOLS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [each for each in project["dependencies"] if name_of(each) not in LEFT_OUT[image]]
    for extra in EXTRAS.get(image, ()):
        needed += project["optional-dependencies"][extra]
    if "torch" not in map(name_of, needed):
        return needed
    of_torch = [each for each in importlib.metadata.requires("torch") or [] if ";" not in each]
    return [each for each in needed if name_of(each) != "torch"] + of_torch


def name_of(requirement: str) -> str:
    """The package's name: "torch" of "torch>=2.11"."""
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0].lower()


def main() -> None:
    """Writes the files."""
    FOLDER.mkdir(exist_ok=True)
    for image in ("tools", *LEFT_OUT):
        lines = _compile(requirements(image))
        head = f"# What the image {image} installs" if image != "tools" else "# What builds the images"
        (FOLDER / f"{image}.lock").write_text(f"{head}; python -m tools.locks writes this file.\n{lines}")


def _compile(needed: list[str]) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(needed) + "\n")
        file.flush()
        options = ("--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate")
        command = [sys.executable, "-m", "uv", "pip", "compile", file.name, "--quiet", "--no-emit-package", "torch"]
        done = subprocess.run(
            [*command, *options, "--constraints", str(ROOT / "constraints.txt")],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return done.stdout


if __name__ == "__main__":
    run(main, __doc__)
