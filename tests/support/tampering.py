"""Edits the files of a checkpoint directory directly, without the libraries that write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

Tensors = dict[str, torch.Tensor]


def edit_config(directory: Path, **changes: Any) -> None:
    """Sets keys of config.json; None removes one."""
    path = directory / "config.json"
    config = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_tensors(directory: Path, edit: Callable[[Tensors], Tensors]) -> None:
    """Rewrites the single weights file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / SINGLE_FILE).items()}
    save_file(edit(tensors), directory / SINGLE_FILE, {"format": "pt"})


def edit_header(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites a file's header, which `edit` changes in place or replaces; the weights stay."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    changed = edit(header)
    write_raw(file, json.dumps(header if changed is None else changed).encode(), content[end:])


def write_raw(file: Path, header: bytes, weights: bytes = b"") -> None:
    """Writes a safetensors file of exactly these parts, valid or not."""
    file.write_bytes(len(header).to_bytes(8, "little") + header + weights)


def flip_byte(file: Path, position: int) -> None:
    """Inverts one byte."""
    with file.open("r+b") as handle:
        handle.seek(position)
        (byte,) = handle.read(1)
        handle.seek(position)
        handle.write(bytes([byte ^ 0xFF]))


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    """Writes the index of a sharded checkpoint: the file name of each tensor."""
    files = sorted(set(weight_map.values()))
    total_size = sum((directory / name).stat().st_size for name in files)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2))
