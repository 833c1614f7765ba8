"""What a conversion is of: the files of a checkpoint by which it is recognised, and those that are copied along."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.safetensors_index import INDEX_FILE
from fiddler.convert.recipe import VERSION, Recipe

RECORD_FILE: Final = "fiddler_conversion.json"
"""Says in the result what it was made of."""
CONFIG_FILE: Final = "config.json"

_WEIGHTS: Final = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5", ".index", ".npz"}
)
_OF_THE_SOURCE: Final = frozenset(
    {CONFIG_FILE, INDEX_FILE, RECORD_FILE, "hf_quant_config.json", "quantize_config.json", "quant_config.json"}
)
"""Files that are written anew, or that say how the source is quantised."""
_FOLDERS: Final = ("additional_chat_templates",)
_SNAPSHOTS: Final = "snapshots"


def identity(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    """What tells one conversion from another: the recipe, and the source's weights and config.json.

    Files count by name, size and time of modification; those of a snapshot of the Hugging Face cache by the revision,
    name and size, since its times are those of downloads. As JSON holds it.
    """
    directory = checkpoint.directory
    is_snapshot = directory.parent.name == _SNAPSHOTS
    files: dict[str, Any] = {}
    for path in sorted((*checkpoint.files, directory / CONFIG_FILE)):
        state = path.stat()
        files[path.name] = [state.st_size] if is_snapshot else [state.st_size, state.st_mtime_ns]
    source = {"model": checkpoint.name, "files": files}
    if is_snapshot:
        source["revision"] = directory.name
    return {"version": VERSION, "experts": recipe.experts, "dense": recipe.dense, "source": source}


def key_of(identity: dict[str, Any]) -> str:
    """A name for a conversion that no other one has."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def side_files(directory: Path) -> list[Path]:
    """What is beside the weights and is copied: tokenizer, generation_config.json, templates, code, texts.

    Paths are relative to the directory.
    """
    found = [path for path in directory.iterdir() if _is_side_file(path)]
    for folder in _FOLDERS:
        found += [path for path in (directory / folder).glob("*") if path.is_file()]
    return sorted(path.relative_to(directory) for path in found)


def _is_side_file(path: Path) -> bool:
    name = path.name
    if name.startswith(".") or name in _OF_THE_SOURCE or not path.is_file():
        return False
    return path.suffix not in _WEIGHTS and not name.endswith(".index.json")
