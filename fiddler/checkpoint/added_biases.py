"""Biases that AutoGPTQ adds to every layer that it codes: they are zero where the model has none.

TheBloke's Mixtral in GPTQ has them. Those that are zero are left out; any other stays what it is.
"""

from collections.abc import Iterable, Mapping

import torch

from fiddler.checkpoint.formats.stored import AnyStored
from fiddler.checkpoint.reading import read_tensor
from fiddler.checkpoint.safetensors_index import TORCH_DTYPES, StoredTensor

_WEIGHT, _BIAS = ".weight", ".bias"


def zero_biases(tensors: Iterable[AnyStored]) -> Mapping[str, StoredTensor]:
    """The biases of coded matrices that are all zero, by name. It reads them, which takes a few bytes of each matrix.

    Args:
        tensors: Of a checkpoint, coded ones put together.
    """
    tensors = list(tensors)
    coded = {each.name.removesuffix(_WEIGHT) + _BIAS for each in tensors if not isinstance(each, StoredTensor)}
    biases = [each for each in tensors if isinstance(each, StoredTensor) and each.name in coded]
    return {each.name: each for each in biases if each.dtype in TORCH_DTYPES and not torch.any(read_tensor(each))}
