"""Which tensors beside the experts are the weights of linear layers of the language model, and may be coded.

A checkpoint does not say what a tensor is of. Names do: families call their linear layers alike. What has no such name
stays as it is: embeddings, norms, convolutions, and routers, which decide by small differences.
"""

import re
from typing import Any, Final

from fiddler.checkpoint.formats import AnyStored

_LINEAR: Final = re.compile(
    r"(?:.*\.)?(?:"
    r"(?!weights_proj)\w+_proj(?:_with_mqa)?"  # q_proj, kv_b_proj, in_proj, shared_expert.down_proj
    r"|in_proj_(?:qkvz?|z)|w[123qkvo]|w[io](?:_[01])?|wqkv|Wqkv|wq_[ab]|wkv(?:_[ab])?|wo_[ab]"
    r"|query_key_value|qkv|dense|fc[12]|out_layer|lm_head"
    r"|(?:input|output)_linear"  # of shared experts
    r"|(?:SelfAttention|EncDecAttention)\.[qkvo]"  # of T5 and its kin
    r")\.weight"
)
_OTHER_PARTS: Final = re.compile(
    r"(?:.*\.)?(?:gate|\w*(?:vision|visual|audio|image|speech|multi_modal|sam_model|router)\w*)\..+"
)
_HEAD: Final = re.compile(r"(?:.*\.)?lm_head\.weight")
_LEAST_OUTPUTS: Final = 2
"""A layer with fewer is a gate."""


def is_linear(tensor: AnyStored, config: dict[str, Any]) -> bool:
    """Whether a tensor that belongs to no expert is the weight of a linear layer of the language model.

    Args:
        tensor: As it is stored.
        config: The content of config.json: a head that is tied to the embeddings is one with them.
    """
    if len(tensor.shape) != 2 or tensor.shape[0] < _LEAST_OUTPUTS or _OTHER_PARTS.fullmatch(tensor.name):
        return False
    if _HEAD.fullmatch(tensor.name) and _has_tied_head(config):
        return False
    return _LINEAR.fullmatch(tensor.name) is not None


def _has_tied_head(config: dict[str, Any]) -> bool:
    sections = (config, *(value for value in config.values() if isinstance(value, dict)))
    return any(section.get("tie_word_embeddings") is True for section in sections)
