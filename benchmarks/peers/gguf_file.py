"""`python -m benchmarks.peers.gguf_file MODEL OUT`: a bf16 checkpoint as GGUF, and from it in other types.

Runs in the peers' environment. OUT is a directory: OUT/BF16.gguf is written with the gguf package, tensor by tensor;
OUT/Q8_0.gguf, OUT/Q4_0.gguf and OUT/Q4_K.gguf are made of it by llama.cpp's own quantiser, with every matrix but the
router in that one type.
"""

import ctypes
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open

from benchmarks.peers.architectures import ARCHITECTURES, is_plain

TYPES: Final = {
    "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0",
    "Q4_K": "LLAMA_FTYPE_MOSTLY_Q4_K_S",
}
"""What llama.cpp calls each."""

_INDEX: Final = "model.safetensors.index.json"
Read = Callable[[str], torch.Tensor]


def main(model: Path, out: Path) -> None:
    """Writes what is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    plain = out / "BF16.gguf"
    if not plain.exists():
        _write(model, plain.with_suffix(".partial"))
        plain.with_suffix(".partial").rename(plain)
    for name, kind in TYPES.items():
        if not (out / f"{name}.gguf").exists():
            _quantise(plain, out / f"{name}.partial", kind)
            (out / f"{name}.partial").rename(out / f"{name}.gguf")


def _write(model: Path, file: Path) -> None:
    gguf: Any = importlib.import_module("gguf")
    config = json.loads((model / "config.json").read_text())
    weight_map = json.loads((model / _INDEX).read_text())["weight_map"]
    opened: dict[str, Any] = {name: safe_open(model / name, "pt") for name in set(weight_map.values())}

    def read(name: str) -> torch.Tensor:
        tensor: torch.Tensor = opened[weight_map[name]].get_tensor(name)
        return tensor

    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, architecture.name)
    _describe(config, writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    tensors = list(architecture.tensors(config))
    kinds = gguf.GGMLQuantizationType
    for name, parts in tensors:
        shape = [*read(parts[0]).shape]
        shape = [len(parts), *shape] if len(parts) > 1 else shape
        kind = kinds.F32 if is_plain(name) else kinds.BF16
        size = int(np.prod(shape)) * (4 if is_plain(name) else 2)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, parts in tensors:
        matrices = [read(part) for part in parts]
        if architecture.rotates_adjacent:
            matrices = [_permuted(matrix, name, config) for matrix in matrices]
        tensor = torch.stack(matrices) if len(matrices) > 1 else matrices[0]
        tensor = tensor.float() if is_plain(name) else tensor.contiguous().view(torch.uint8)
        writer.write_tensor_data(tensor.numpy())
    writer.close()


def _describe(config: Mapping[str, Any], writer: Any) -> None:
    """Writes what llama.cpp calls hyperparameters."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _permuted(weight: torch.Tensor, name: str, config: Mapping[str, Any]) -> torch.Tensor:
    """Queries and keys with the two halves of each head's rows interleaved."""
    if "attn_q" in name or "attn_k" in name:
        heads = config["num_attention_heads" if "attn_q" in name else "num_key_value_heads"]
        return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    return weight


def _quantise(source: Path, target: Path, kind: str) -> None:
    llama_cpp: Any = importlib.import_module("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, kind)
    params.pure = True
    params.nthread = 0
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if status:
        sys.exit(f"{target}: llama_model_quantize returned {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
