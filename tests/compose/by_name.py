"""A model by its name: compose.yaml mounts the host's Hugging Face cache, whole."""

import shutil
import tempfile
from pathlib import Path

from client import Client
from tests.compose.stack import ROOT, ComposeError, Stack

PROJECT = "fiddler-compose-test-name"
_NAME = "acme/tiny"
_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_OF_THE_MODEL = {".json", ".safetensors", ".jinja"}


def served_by_name() -> str:
    """Both services find the model in the mounted cache, whose snapshot is links to blobs.

    Returns:
        The text that it generates.

    Raises:
        ComposeError: The model has another name, or generates nothing.
    """
    with tempfile.TemporaryDirectory() as home:
        write_cache(Path(home))
        stack = Stack(PROJECT, FIDDLER_MODEL=_NAME, HF_HOME=home)
        try:
            stack.up("gpu-service")
            stack.wait_until_healthy("gpu-service")
            with Client(stack.target) as client:
                name = client.model_info().name
                text = client.generate("It was a fine", max_tokens=4, temperature=0).text()
            if name != _NAME or not text.strip():
                raise ComposeError(f"{_NAME} is served as {name}, and generated {text!r}")
            return f"{name}:{text}"
        finally:
            stack.down("--volumes")


def write_cache(home: Path) -> None:
    """Writes the demo model as a model of the hub into a cache that any user may read."""
    repository = home / "hub" / "models--acme--tiny"
    snapshot = repository / "snapshots" / _COMMIT
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(_COMMIT)
    for path in sorted((ROOT / "models" / "demo").iterdir()):
        if path.suffix in _OF_THE_MODEL:
            shutil.copyfile(path, repository / "blobs" / path.name)
            (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    for path in (home, *home.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
