"""A way in which a coded checkpoint is not served, and what damages a checkpoint so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fiddler.checkpoint import CheckpointError, errors
from tests.support.damage import Damage, after
from tests.support.tampering import Tensors, edit_tensors

EXPERT = "model.layers.1.mlp.experts.3.down_proj"
DENSE = "model.layers.1.self_attn.q_proj"
UNSUPPORTED = errors.UnsupportedDtypeError


class Case(NamedTuple):
    """One row of the table."""

    written: str
    """The row of `coded.FORMATS` that the checkpoint is written in; empty for a plain one."""
    damage: Damage
    error: type[CheckpointError]
    fragments: tuple[str, ...]
    """What the message says."""
    is_read: bool = False
    """Whether only reading the weights shows it."""


def settings(**changes: Any) -> Damage:
    """Changes keys of the quantization_config; None removes one."""

    def damage(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        changed = config.get("quantization_config", {}) | changes
        config["quantization_config"] = {key: value for key, value in changed.items() if value is not None}
        path.write_text(json.dumps(config))

    return damage


def weights(**changes: Any) -> Damage:
    """Changes keys of what compressed-tensors' only group says of weights."""

    def damage(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"]["config_groups"]["group_0"]["weights"].update(changes)
        path.write_text(json.dumps(config))

    return damage


def unnamed(directory: Path) -> None:
    """Removes the quantization_config."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    path.write_text(json.dumps(config))


def of_modelopt(algorithm: str | None) -> Damage:
    """ModelOpt's own file in place of the quantization_config."""
    quantization = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
    return after(unnamed, lambda directory: (directory / "hf_quant_config.json").write_text(json.dumps(quantization)))


def stacked(directory: Path) -> None:
    """A matrix's planes get a dimension for experts."""

    def edit(tensors: Tensors) -> Tensors:
        planes = [name for name in tensors if name.startswith(f"{EXPERT}.") and not name.endswith("g_idx")]
        return tensors | {name: tensors[name][None].repeat(2, 1, 1) for name in planes}

    edit_tensors(directory, edit)


def first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Sets the first element."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change
