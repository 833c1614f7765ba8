"""`python -m tools.protos [FOLDER]`: generates the stubs of protos/fiddler/v1 into the tree, or into a folder.

It lies among the tests since one of them holds the committed stubs against what this makes.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROTOS = ROOT / "protos"
PACKAGE = Path("fiddler") / "v1"
NAMES = tuple(sorted(f"{PACKAGE.as_posix()}/{path.name}" for path in (PROTOS / PACKAGE).glob("*.proto")))


def protoc(*arguments: str) -> None:
    """Runs the protocol buffer compiler on all protos.

    Raises:
        CalledProcessError: It refused them, and has said why on standard error.
    """
    # mypy-protobuf's plugins lie beside the interpreter, which need not be on PATH
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", *arguments, *NAMES]
    subprocess.run(command, env=os.environ | {"PATH": path}, check=True)


def generate(folder: Path) -> None:
    """Writes `folder`/fiddler/v1 anew; its __init__.py, which is written by hand, stays."""
    outputs = folder / PACKAGE
    outputs.mkdir(parents=True, exist_ok=True)
    for path in outputs.glob("*_pb2*.py*"):
        path.unlink()
    kinds = ("python_out", "grpc_python_out", "mypy_out=quiet", "mypy_grpc_out=quiet")
    protoc(*(f"--{kind}:{folder}" if "=" in kind else f"--{kind}={folder}" for kind in kinds))


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
