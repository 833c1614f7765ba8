"""`python -m tools.protos [FOLDER]`: generates the stubs of protos/fiddler/v1 into the repository, or into FOLDER.

`make protos` runs it; tests/test_protos.py compares the committed stubs with what it generates.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from tools.command_line import run

ROOT = Path(__file__).parents[1]
PROTOS = ROOT / "protos"
PACKAGE = Path("fiddler") / "v1"
NAMES = tuple(sorted(f"{PACKAGE.as_posix()}/{path.name}" for path in (PROTOS / PACKAGE).glob("*.proto")))


def protoc(*arguments: str) -> None:
    """Runs the protocol buffer compiler on all protos.

    Raises:
        CalledProcessError: It refused them; the reason is on standard error.
    """
    # mypy-protobuf's plugins are installed next to the interpreter, whose directory need not be on PATH
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", *arguments, *NAMES]
    subprocess.run(command, env=os.environ | {"PATH": path}, check=True)


def generate(folder: Path) -> None:
    """Regenerates `folder`/fiddler/v1. Its __init__.py is written by hand and stays."""
    outputs = folder / PACKAGE
    outputs.mkdir(parents=True, exist_ok=True)
    for path in outputs.glob("*_pb2*.py*"):
        path.unlink()
    kinds = ("python_out", "grpc_python_out", "mypy_out=quiet", "mypy_grpc_out=quiet")
    protoc(*(f"--{kind}:{folder}" if "=" in kind else f"--{kind}={folder}" for kind in kinds))


def main(
    folder: Annotated[Path, typer.Argument(help="Where fiddler/v1 is written.", show_default="the repository")] = ROOT,
) -> None:
    """Generates the stubs."""
    generate(folder)


if __name__ == "__main__":
    run(main, __doc__)
