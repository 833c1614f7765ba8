"""The dtype that a checkpoint's experts have in common."""

from collections.abc import Sequence
from typing import Any, Final

import torch

from fiddler.checkpoint.errors import UnsupportedDtypeError
from fiddler.checkpoint.views import CheckpointLayer, WeightView

_DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def expert_dtype(layers: Sequence[CheckpointLayer], config: dict[str, Any]) -> torch.dtype:
    """That of the experts' weights; of coded ones the dtype in which config.json says the model computes.

    Args:
        layers: All of a checkpoint's.
        config: The content of config.json.

    Raises:
        UnsupportedDtypeError: Layers have different ones.
    """
    plain = [view for layer in layers if isinstance(view := layer.experts[0].down, WeightView)]
    if not plain:
        sections = (config, *(value for value in config.values() if isinstance(value, dict)))
        named = next((each for each in (s.get("dtype", s.get("torch_dtype")) for s in sections) if each), None)
        return _DTYPES.get(str(named).removeprefix("torch."), torch.bfloat16)
    first = plain[0]
    for other in plain:
        if other.dtype != first.dtype:
            raise UnsupportedDtypeError(
                f"{other.file} stores the expert tensor {other.name!r} as {other.dtype}, but {first.name!r} is "
                f"{first.dtype}: all experts must have one dtype."
            )
    return first.dtype
