"""Reads converted checkpoints with the package compressed-tensors, which knows nothing of the code under test."""

import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.utils.match import match_targets
from safetensors.torch import load_file, save_file

from tests.support.tampering import SINGLE_FILE

_LINEAR = torch.nn.Linear(1, 1, device="meta")
_SUFFIXES = ("weight_packed", "weight_scale", "weight_shape")


def settings_of(directory: Path) -> QuantizationConfig:
    """The quantization_config, as the package checks it."""
    return QuantizationConfig.model_validate(json.loads((directory / "config.json").read_text())["quantization_config"])


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of all files."""
    return {
        name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def decoded(directory: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint stands for: its tensors under the names of their plain forms, coded ones in float32."""
    settings, stored = settings_of(directory), tensors_of(directory)
    modules = {name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")}
    plain = {}
    for name, tensor in stored.items():
        module = name.rpartition(".")[0]
        if module not in modules:
            plain[name] = tensor
        elif name.endswith(".weight_scale"):
            parts = {part: stored[f"{module}.{part}"] for part in _SUFFIXES if f"{module}.{part}" in stored}
            if f"{module}.weight" in stored:
                parts["weight"] = stored[f"{module}.weight"]
            plain[f"{module}.weight"] = _decompress(module, parts, settings)
        elif name == f"{module}.bias":
            plain[name] = tensor
    return plain


def write_decoded(converted: Path, plain: Path, directory: Path) -> Path:
    """Writes in float32 what a converted checkpoint stands for.

    Args:
        converted: The checkpoint.
        plain: Gives config.json.
        directory: What is made.
    """
    directory.mkdir()
    config = json.loads((plain / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    tensors = {name: tensor.float().contiguous() for name, tensor in decoded(converted).items()}
    save_file(tensors, directory / SINGLE_FILE, metadata={"format": "pt"})
    return directory


def _decompress(module: str, parts: dict[str, torch.Tensor], settings: QuantizationConfig) -> torch.Tensor:
    scheme = _scheme_of(module, settings)
    assert module not in settings.ignore
    parts["weight_scale"] = parts["weight_scale"].float()  # the package rounds weights to the dtype of scales
    result: dict[str, Any] = BaseCompressor.get_value_from_registry(scheme.format or settings.format).decompress(
        parts, scheme
    )
    return torch.as_tensor(result["weight"]).float()


def _scheme_of(module: str, settings: QuantizationConfig) -> QuantizationScheme:
    """The scheme of a linear layer, by the package's own order: a name, a regular expression, the class."""
    by_target = {target: group for group in settings.config_groups.values() for target in group.targets}
    assert len(by_target) == sum(len(group.targets) for group in settings.config_groups.values())
    return by_target[match_targets(module, _LINEAR, by_target)[0]]
