"""Ways to damage a tiny Mixtral checkpoint, each of them a function of its directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support import checkpoints
from tests.support.tampering import INDEX_FILE, SINGLE_FILE, Tensors, edit_config, edit_header, edit_tensors, write_raw

GATE = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
DOWN = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
EXPERTS = "layers.1.block_sparse_moe.experts"
UP = "model.layers.1.block_sparse_moe.experts.3.w3.weight"
GATE_UP = "model.layers.1.block_sparse_moe.experts.gate_up_proj"
FUSED_DOWN = "model.layers.1.block_sparse_moe.experts.down_proj"
SHARD = "model-00002-of-00002.safetensors"

Damage = Callable[[Path], Any]


def replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return lambda directory: edit_tensors(directory, lambda tensors: tensors | {name: change(tensors[name])})


def drop(*names: str) -> Damage:
    return lambda directory: edit_tensors(
        directory, lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}
    )


def rename(old: str, new: str) -> Damage:
    return lambda directory: edit_tensors(
        directory, lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}
    )


def add(name: str, tensor: torch.Tensor) -> Damage:
    return lambda directory: edit_tensors(directory, lambda tensors: tensors | {name: tensor})


def config(**changes: Any) -> Damage:
    return lambda directory: edit_config(directory, **changes)


def header(name: str, **changes: Any) -> Damage:
    return lambda directory: edit_header(directory / SINGLE_FILE, lambda entries: entries[name].update(changes))


def raw(content: bytes, weights: bytes = b"") -> Damage:
    return lambda directory: write_raw(directory / SINGLE_FILE, content, weights)


def after(*steps: Damage) -> Damage:
    def damage(directory: Path) -> None:
        for step in steps:
            step(directory)

    return damage


def fuse(directory: Path) -> None:
    checkpoints.fuse(directory)


def shard(directory: Path) -> None:
    checkpoints.shard(directory, 2)


def index(edit: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / INDEX_FILE
        content = json.loads(path.read_bytes())
        edit(content)
        path.write_text(json.dumps(content))

    return damage


def truncate(num_bytes: int) -> Damage:
    def damage(directory: Path) -> None:
        content = (directory / SINGLE_FILE).read_bytes()
        (directory / SINGLE_FILE).write_bytes(content[:num_bytes])

    return damage


def only(name: str) -> Damage:
    return lambda directory: (directory / SINGLE_FILE).rename(directory / name)


def overlap(directory: Path) -> None:
    def edit(entries: dict[str, Any]) -> None:
        begin, end = entries[UP]["data_offsets"]
        entries[UP]["data_offsets"] = [begin - 4, end - 4]

    edit_header(directory / SINGLE_FILE, edit)


def link(name: str, target: str) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).symlink_to(target)

    return damage


def as_qwen_in_layer_1(directory: Path) -> None:
    def renamed(name: str) -> str:
        if "layers.1." not in name:
            return name
        for old, new in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            name = name.replace(f".{old}.", f".{new}.")
        return name

    edit_tensors(directory, lambda tensors: {renamed(name): tensor for name, tensor in tensors.items()})


def as_dense(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "expert" not in name}
