"""Writers of small checkpoints, laid out as each family is published on the hub.

transformers' own `save_pretrained` writes the published layout: it undoes the fusing that it does on loading.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.views import CodedView, WeightView
from tests.support.large_checkpoint import write_large
from tests.support.tampering import SINGLE_FILE, Tensors, edit_config, edit_tensors, write_index
from tests.support.weights import plain_view

__all__ = [
    "CONFIGS",
    "FAMILIES",
    "VOCAB_SIZE",
    "build",
    "fuse",
    "scale_expert",
    "scaled_expert",
    "shard",
    "write",
    "write_large",
    "write_tokenizer",
]

VOCAB_SIZE = 320

_SHARED: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 96, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "head_dim": 16,
        "norm_topk_prob": True,
    },
    "olmoe": {"intermediate_size": 48, "num_experts": 7, "num_experts_per_tok": 4},
    "deepseek_v2": {
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 2.0,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    },
    "qwen2_moe": {
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "num_experts": 6,
        "num_experts_per_tok": 2,
    },
    "granitemoe": {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2},
}

FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v2", "olmoe")
"""Families whose experts have a tensor for each projection; granitemoe's are fused on the hub, too."""


def build(
    family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, std: float = 0.2, **config_overrides: Any
) -> PreTrainedModel:
    """A tiny random model. By default its matrices have a standard deviation at which experts matter."""
    config = AutoConfig.for_model(family, **_SHARED | CONFIGS[family] | config_overrides)
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in _drawn(model):
            tensor.normal_(0, std if tensor.ndim >= 2 else 0.05, generator=generator)
            if "norm" in name and tensor.ndim == 1:
                tensor.add_(1)
    torch.nn.Module.to(model, dtype)
    model.train(False)
    return model


def write(
    family: str,
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    std: float = 0.2,
    shards: int = 1,
    **config_overrides: Any,
) -> Path:
    """Writes what `build` makes as on the hub, with an index if there are several shards. Returns `directory`."""
    model = build(family, dtype=dtype, seed=seed, std=std, **config_overrides)
    model.save_pretrained(directory)
    if shards > 1:
        shard(directory, shards)
    return directory


_FEW_WORDS = ("the experts that are not on the GPU are computed where their weights are",)


def write_tokenizer(directory: Path, vocab_size: int = VOCAB_SIZE, texts: Iterable[str] = _FEW_WORDS) -> None:
    """A byte-level BPE tokenizer of at most so many tokens, made from texts: encoded, any text decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)


def shard(directory: Path, count: int) -> None:
    """Splits the single weights file into `count` files and an index."""
    tensors = load_file(directory / SINGLE_FILE)
    (directory / SINGLE_FILE).unlink()
    weight_map: dict[str, str] = {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = dict(list(tensors.items())[number::count])
        save_file(part, directory / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    write_index(directory, weight_map)


def fuse(directory: Path, *, transposed: bool = False, interleaved: bool = False, suffix: str = "") -> Path:
    """Rewrites a checkpoint with a tensor for each projection as one with two tensors for each layer, in place.

    `transposed` stores [E, H, 2I] and [E, I, H]; `interleaved` alternates gate and up and names the model gpt_oss.
    """
    checkpoint = Checkpoint.open(directory)
    fused: Tensors = {}
    for layer in checkpoint.layers:
        gates, ups, downs = [], [], []
        for expert in layer.experts:
            assert expert.gate is not None
            gates.append(checkpoint.tensor(expert.gate))
            ups.append(checkpoint.tensor(expert.up))
            downs.append(checkpoint.tensor(expert.down))
        pair = torch.stack(gates), torch.stack(ups)
        gate_up = torch.stack(pair, 2).flatten(1, 2) if interleaved else torch.cat(pair, 1)
        down = torch.stack(downs)
        if transposed:
            gate_up, down = gate_up.mT.contiguous(), down.mT.contiguous()
        fused |= {f"{layer.name}.gate_up_proj{suffix}": gate_up, f"{layer.name}.down_proj{suffix}": down}
    names = checkpoint.expert_tensor_names
    edit_tensors(directory, lambda tensors: {n: t for n, t in tensors.items() if n not in names} | fused)
    if interleaved:
        edit_config(directory, model_type="gpt_oss")
    return directory


def scale_expert(directory: Path, *, layer: int, expert: int, factor: float) -> None:
    """Multiplies the down matrix of one expert of decoder layer `layer` by `factor`, in the file.

    If the matrix is coded, its scales are multiplied. Scales that are powers of two cannot be: the first output's are
    doubled, which changes less of the matrix by more.
    """
    view = _scaled_view(directory, layer, expert)
    begin, end = view.span_bytes
    with view.file.open("r+b") as file:
        file.seek(begin)
        span = bytearray(file.read(end - begin))
        values = torch.frombuffer(span, dtype=view.dtype).as_strided(view.shape, view.strides)
        if view.dtype == torch.uint8:
            values[0] += 1
        else:
            values.mul_(factor)
        file.seek(begin)
        file.write(span)


@contextmanager
def scaled_expert(directory: Path, *, layer: int, expert: int, factor: float) -> Iterator[None]:
    """The same until the context ends. The file keeps its time: services end when a file that they serve is changed."""
    view = _scaled_view(directory, layer, expert)
    begin, end = view.span_bytes
    with view.file.open("r+b", buffering=0) as file:
        before = os.fstat(file.fileno())
        file.seek(begin)
        original = file.read(end - begin)
        scale_expert(directory, layer=layer, expert=expert, factor=factor)
        os.utime(view.file, ns=(before.st_atime_ns, before.st_mtime_ns))
        try:
            yield
        finally:
            file.seek(begin)
            file.write(original)
            os.utime(view.file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _scaled_view(directory: Path, layer: int, expert: int) -> WeightView:
    """What `scale_expert` changes."""
    checkpoint = Checkpoint.open(directory)
    (moe_layer,) = (candidate for candidate in checkpoint.layers if candidate.decoder_layer == layer)
    down = moe_layer.experts[expert].down
    checkpoint.close()
    return down.scales if isinstance(down, CodedView) else plain_view(down)


def _drawn(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from sorted(model.named_parameters())
    # a router's correction bias is a buffer in some families, and published
    yield from ((name, buffer) for name, buffer in sorted(model.named_buffers()) if name.endswith("correction_bias"))
