"""Tiny random checkpoints of any family of transformers, in the layout that the family is published in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gpu_service.models.registry import architecture_of
from tests.support.families.configs import config_of


def build(
    model_type: str, *, dtype: torch.dtype = torch.float32, config: dict[str, Any] | None = None
) -> PreTrainedModel:
    """A tiny random model with some settings of its own, and matrices so large that its experts matter."""
    configuration = config_of(model_type, **config or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = architecture_of(configuration.model_type).auto_class.from_config(
            configuration, dtype=torch.float32
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in _drawn(model):
            tensor.normal_(0, 0.2 if tensor.ndim >= 2 else 0.05, generator=generator)
            if tensor.ndim == 1 and ("norm" in name or name.endswith("scale")):
                tensor.add_(1)  # factors are near one in a trained model
    torch.nn.Module.to(model, dtype)
    model.train(False)
    return model


def write(
    model_type: str,
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    config: dict[str, Any] | None = None,
    **saving: Any,
) -> Path:
    """Writes what `build` makes: save_pretrained undoes the fusing that transformers does on loading."""
    build(model_type, dtype=dtype, config=config).save_pretrained(directory, **saving)
    return directory


def _drawn(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from sorted(model.named_parameters())
    # in some families a router's correction is a buffer, which is published, too
    yield from ((name, buffer) for name, buffer in sorted(model.named_buffers()) if name.endswith("_bias"))
