"""A checkpoint of about a gigabyte, for tests that measure memory; written at the speed of the disk."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from tests.support.tampering import write_index

Shapes = dict[str, tuple[int, ...]]


def write_large(directory: Path, total_bytes: int) -> Path:
    """A bf16 Mixtral of about `total_bytes` (250 MB or more), an eighth of it dense. Its output is noise."""
    return write_mixtral(directory, **_large_shape(total_bytes))


def large_bytes(total_bytes: int) -> int:
    """The bytes of the weights that `write_large` writes."""
    return mixtral_bytes(**_large_shape(total_bytes))


def _large_shape(total_bytes: int) -> dict[str, int]:
    hidden, inner, num_experts = 1024, 3584, 8
    vocab_size = max(320, total_bytes // 8 // (2 * 2 * hidden))
    layer_bytes = 2 * (num_experts * 3 * hidden * inner + 5 * hidden * hidden // 2)
    num_layers = max(1, round((total_bytes - 4 * vocab_size * hidden) / layer_bytes))
    return {
        "hidden": hidden,
        "inner": inner,
        "num_layers": num_layers,
        "num_heads": 16,
        "vocab_size": vocab_size,
    }


def mixtral_bytes(
    *, hidden: int, inner: int, num_layers: int, num_heads: int, vocab_size: int, num_experts: int = 8
) -> int:
    """The bytes of the weights that `write_mixtral` writes; `num_heads` has no part in them."""
    parts = mixtral_parts(
        hidden=hidden, inner=inner, num_layers=num_layers, vocab_size=vocab_size, num_experts=num_experts
    )
    return sum(2 * torch.Size(shape).numel() for shapes in parts for shape in shapes.values())


def mixtral_parts(*, hidden: int, inner: int, num_layers: int, vocab_size: int, num_experts: int = 8) -> list[Shapes]:
    """The shapes of the tensors of each file, by name."""
    layers = [_mixtral_layer_shapes(layer, hidden, inner, num_experts) for layer in range(num_layers)]
    return [outer_shapes(hidden, vocab_size), *layers]


def write_mixtral(
    directory: Path,
    *,
    hidden: int,
    inner: int,
    num_layers: int,
    num_heads: int,
    vocab_size: int,
    num_experts: int = 8,
    max_positions: int = 1024,
) -> Path:
    """A bf16 Mixtral of that shape, with a quarter as many heads for keys and values; its matrices are noise."""
    config = AutoConfig.for_model(
        "mixtral",
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 4,
        num_local_experts=num_experts,
        vocab_size=vocab_size,
        max_position_embeddings=max_positions,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
        architectures=["MixtralForCausalLM"],
    )
    parts = mixtral_parts(
        hidden=hidden, inner=inner, num_layers=num_layers, vocab_size=vocab_size, num_experts=num_experts
    )
    return write_noise(directory, config, parts)


def write_noise(directory: Path, config: PreTrainedConfig, parts: Sequence[Shapes]) -> Path:
    """A bf16 checkpoint of these files, whose vectors are ones.

    All matrices are slices of one block of noise, so that only the disk limits the speed of writing.

    Args:
        directory: Where it is written.
        config: Written as config.json.
        parts: The shapes of the tensors of each file, by name.
    """
    config.save_pretrained(directory)
    deviation = config.hidden_size**-0.5
    noise = torch.randn(8 << 20, generator=torch.Generator().manual_seed(0)).mul_(deviation).to(torch.bfloat16)
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(parts, start=1):
        file = directory / f"model-{number:05}-of-{len(parts):05}.safetensors"
        _write_noise(file, shapes, noise)
        weight_map |= dict.fromkeys(shapes, file.name)
    write_index(directory, weight_map)
    return directory


def outer_shapes(hidden: int, vocab_size: int) -> Shapes:
    """Of the tensors around the layers."""
    vocabulary = (vocab_size, hidden)
    return {
        "model.embed_tokens.weight": vocabulary,
        "lm_head.weight": vocabulary,
        "model.norm.weight": (hidden,),
    }


def attention_shapes(prefix: str, *, hidden: int, queries: int, keys: int) -> Shapes:
    """Of a layer's norms and attention, which most families name so.

    Args:
        prefix: Of the layer's names.
        hidden: The width of a token.
        queries: That of its queries, all heads together.
        keys: That of its keys, and of its values.
    """
    return {
        f"{prefix}.input_layernorm.weight": (hidden,),
        f"{prefix}.post_attention_layernorm.weight": (hidden,),
        f"{prefix}.self_attn.q_proj.weight": (queries, hidden),
        f"{prefix}.self_attn.k_proj.weight": (keys, hidden),
        f"{prefix}.self_attn.v_proj.weight": (keys, hidden),
        f"{prefix}.self_attn.o_proj.weight": (hidden, queries),
    }


def block_shapes(block: str, names: tuple[str, str, str], *, hidden: int, inner: int, num_experts: int) -> Shapes:
    """Of a layer's router and experts.

    Args:
        block: The prefix of their names.
        names: An expert's gate, down and up projection.
        hidden: The width of a token.
        inner: That of an expert between its projections.
        num_experts: Of the layer.
    """
    shapes: Shapes = {f"{block}.gate.weight": (num_experts, hidden)}
    sizes = ((inner, hidden), (hidden, inner), (inner, hidden))
    for expert in range(num_experts):
        for name, size in zip(names, sizes, strict=True):
            shapes[f"{block}.experts.{expert}.{name}.weight"] = size
    return shapes


def _mixtral_layer_shapes(layer: int, hidden: int, inner: int, num_experts: int) -> Shapes:
    prefix = f"model.layers.{layer}"
    attention = attention_shapes(prefix, hidden=hidden, queries=hidden, keys=hidden // 4)
    return attention | block_shapes(
        f"{prefix}.block_sparse_moe", ("w1", "w2", "w3"), hidden=hidden, inner=inner, num_experts=num_experts
    )


def _write_noise(file: Path, shapes: Shapes, noise: torch.Tensor) -> None:
    """A bf16 safetensors file: vectors are ones, matrices are slices of the noise, repeated if it is too short."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    values = noise.view(torch.uint8).numpy().data
    with file.open("wb") as output:
        output.write(len(encoded).to_bytes(8, "little") + encoded)
        for number, shape in enumerate(shapes.values()):
            if len(shape) == 1:
                output.write(torch.ones(shape, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
                continue
            output.writelines(_slices(values, 2 * torch.Size(shape).numel(), begin=4096 * number))


def _slices(values: memoryview, num_bytes: int, begin: int) -> Iterator[memoryview]:
    while num_bytes > 0:
        piece = values[begin : begin + num_bytes]
        yield piece
        num_bytes -= len(piece)
        begin = 0
