"""Every way a checkpoint can be damaged, with the class of its error and what the message says."""

import os
import shutil

import torch

from fiddler.checkpoint import NAMINGS, CheckpointError, errors
from fiddler.checkpoint.safetensors_index import MAX_HEADER_BYTES
from tests.support.damage import (
    DOWN,
    EXPERTS,
    FUSED_DOWN,
    GATE,
    GATE_UP,
    SHARD,
    UP,
    Damage,
    add,
    after,
    as_dense,
    as_qwen_in_layer_1,
    config,
    drop,
    fuse,
    header,
    index,
    link,
    only,
    overlap,
    raw,
    rename,
    replace,
    shard,
    truncate,
)
from tests.support.tampering import INDEX_FILE, SINGLE_FILE, edit_header, edit_tensors

CASES: dict[str, tuple[Damage, type[CheckpointError], list[str]]] = {
    "no directory": (shutil.rmtree, errors.DirectoryError, ["copy does not exist"]),
    "a file": (after(shutil.rmtree, lambda d: d.write_text("")), errors.DirectoryError, ["copy is not a directory"]),
    "no config": (lambda d: (d / "config.json").unlink(), errors.DirectoryError, ["config.json is missing"]),
    "config not JSON": (
        lambda d: (d / "config.json").write_text("{"),
        errors.ConfigError,
        ["config.json is not JSON: Expecting"],
    ),
    "config a list": (
        lambda d: (d / "config.json").write_text("[1]"),
        errors.ConfigError,
        ["config.json is not a JSON object"],
    ),
    "config a directory": (
        after(lambda d: (d / "config.json").unlink(), lambda d: (d / "config.json").mkdir()),
        errors.DirectoryError,
        ["config.json is not a regular file"],
    ),
    "config a device": (
        link("config.json", "/dev/zero"),
        errors.DirectoryError,
        ["config.json is a link to something that is not a regular file"],
    ),
    "config a pipe": (
        after(lambda d: (d / "config.json").unlink(), lambda d: os.mkfifo(d / "config.json")),
        errors.DirectoryError,
        ["config.json is not a regular file"],
    ),
    "config that leads nowhere": (
        link("config.json", "/nowhere"),
        errors.DirectoryError,
        ["config.json is a link that leads nowhere"],
    ),
    "config of 20 MB": (
        lambda d: os.truncate(d / "config.json", 20 * 2**20),
        errors.ConfigError,
        ["config.json has 20971520 bytes; such a file has at most 16777216"],
    ),
    "config with a number of 4000 digits": (
        lambda d: (d / "config.json").write_text('{"hidden_size": 1' + "0" * 4000 + "}"),
        errors.ConfigError,
        ["config.json is not JSON: a number has 4001 digits"],
    ),
    "more layers than tensors": (
        config(num_hidden_layers=10**8),
        errors.ConfigError,
        ["config.json: num_hidden_layers is 100000000, but the checkpoint has only "],
    ),
    "more layers of a tower than tensors": (
        config(vision_config={"depth": 10**9}),
        errors.ConfigError,
        ["config.json: depth is 1000000000, but the checkpoint has only "],
    ),
    "no model_type": (config(model_type=None), errors.ConfigError, ["config.json names no model_type"]),
    "no hidden_size": (config(hidden_size=None), errors.ConfigError, ["config.json gives no hidden_size"]),
    "dense": (
        after(lambda d: edit_tensors(d, as_dense), config(num_local_experts=None, model_type="llama")),
        errors.ConfigError,
        ["config.json describes no experts", "llama is dense"],
    ),
    "unknown family": (
        rename(".experts.", ".specialist_experts."),
        errors.UnknownNamingError,
        [
            "config.json describes a mixtral model",
            "model.layers.0.block_sparse_moe.specialist_experts.0.w1.weight",
            *(naming.description for naming in NAMINGS),
        ],
    ),
    "unknown family without the word": (
        lambda d: edit_tensors(d, as_dense),
        errors.UnknownNamingError,
        ["no tensor with 'expert' in its name"],
    ),
    "no weights": (
        lambda d: (d / SINGLE_FILE).unlink(),
        errors.DirectoryError,
        ["holds no safetensors file: neither model.safetensors nor model.safetensors.index.json"],
    ),
    "only bin files": (only("pytorch_model.bin"), errors.DirectoryError, ["only pytorch_model.bin"]),
    "no index": (only("model-00001-of-00002.safetensors"), errors.DirectoryError, ["but neither model.safetensors"]),
    "weights a device": (
        link(SINGLE_FILE, "/dev/zero"),
        errors.DirectoryError,
        ["model.safetensors is a link to something that is not a regular file"],
    ),
    "a shard a device": (
        after(shard, link(SHARD, "/dev/zero")),
        errors.DirectoryError,
        [f"{SHARD} is a link to something that is not a regular file, though", "index.json names it"],
    ),
    "index not JSON": (
        after(shard, lambda d: (d / INDEX_FILE).write_text("]")),
        errors.FileFormatError,
        ["index.json is not JSON"],
    ),
    "index without a map": (
        after(shard, index(lambda i: i.pop("weight_map"))),
        errors.FileFormatError,
        ["index.json has no weight_map"],
    ),
    "index leads elsewhere": (
        after(shard, index(lambda i: i["weight_map"].update({UP: "../x.safetensors"}))),
        errors.FileFormatError,
        ["index.json", UP, "'../x.safetensors'", "not a file name in the same directory"],
    ),
    "index leads to the parent": (
        after(shard, index(lambda i: i["weight_map"].update({UP: ".."}))),
        errors.DirectoryError,
        [r"copy/.. is not a regular file"],
    ),
    "index with a number": (
        after(shard, index(lambda i: i["weight_map"].update({UP: 3}))),
        errors.FileFormatError,
        ["index.json", UP, "in 3"],
    ),
    "index with an endless name": (
        after(shard, index(lambda i: i["weight_map"].update({UP: "x" * 5000}))),
        errors.DirectoryError,
        ["is missing, though"],
    ),
    "no shard": (
        after(shard, lambda d: (d / SHARD).unlink()),
        errors.DirectoryError,
        [f"{SHARD} is missing, though", "index.json names it"],
    ),
    "tensor not in its shard": (
        after(shard, index(lambda i: i["weight_map"].update({"extra.weight": SHARD}))),
        errors.MissingTensorError,
        [f"{SHARD} lacks the tensor 'extra.weight'"],
    ),
    "empty": (truncate(0), errors.FileFormatError, ["model.safetensors is truncated: it ends within its header"]),
    "half a length": (truncate(5), errors.FileFormatError, ["is truncated: it ends within its header"]),
    "half a header": (truncate(500), errors.FileFormatError, ["is truncated: it ends within its header"]),
    "half the weights": (truncate(100_000), errors.FileFormatError, ["truncated: the tensor 'model", "ends at byte"]),
    "bytes too many": (
        lambda d: (d / SINGLE_FILE).open("ab").write(b"1234567"),
        errors.FileFormatError,
        ["has 7 bytes after its last tensor"],
    ),
    "absurd header": (
        lambda d: (d / SINGLE_FILE).write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(100)),
        errors.FileFormatError,
        ["claims a header of 100000001 bytes"],
    ),
    "header not JSON": (raw(b'{"a": '), errors.FileFormatError, ["has a damaged header: Expecting"]),
    "header not UTF-8": (raw(b'{"\xff": 1}'), errors.FileFormatError, ["has a damaged header: 'utf-8'"]),
    "header a list": (raw(b"[]"), errors.FileFormatError, ["it is not a JSON object"]),
    "header nested": (raw(b"[" * 100_000), errors.FileFormatError, ["has a damaged header"]),
    "key twice": (raw(b'{"a": {}, "a": {}}'), errors.FileFormatError, ["a key occurs twice"]),
    "entry malformed": (raw(b'{"a": {"dtype": "F32"}}'), errors.FileFormatError, ["entry of the tensor 'a' is malf"]),
    "negative size": (header(UP, shape=[-24, -32]), errors.FileFormatError, [UP, "no whole number"]),
    "size in quotes": (header(UP, shape=["24", 32]), errors.FileFormatError, [UP, "no whole number"]),
    "size of true": (header(UP, shape=[24, 32, True]), errors.FileFormatError, [UP, "no whole number"]),
    "wrong byte count": (header(UP, shape=[24, 31]), errors.FileFormatError, [UP, "3072 bytes", "takes 2976"]),
    "unknown dtype": (header(UP, dtype="F33"), errors.FileFormatError, [UP, "unknown dtype 'F33'"]),
    "size of 4000 digits": (
        header(UP, shape=[10**4000] * 9),
        errors.FileFormatError,
        [SINGLE_FILE, "damaged header: a number has 4001 digits"],
    ),
    "size of 2^63": (header(UP, shape=[0, 2**63]), errors.FileFormatError, [UP, "the largest is 9223372036854775808"]),
    "17 dimensions": (header(UP, shape=[1] * 17), errors.FileFormatError, [UP, "has 17 dimensions"]),
    "an endless name": (
        lambda d: edit_header(d / SINGLE_FILE, lambda entries: entries.update({"x" * 5000: entries.pop(UP)})),
        errors.FileFormatError,
        ["the name of a tensor has 5000 characters"],
    ),
    "overlap": (overlap, errors.FileFormatError, ["the tensor", "overlaps the tensor before it"]),
    "gap": (
        raw(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}', b"12"),
        errors.FileFormatError,
        ["the tensor 'a' leaves a gap"],
    ),
    "gate of another size": (
        replace(GATE, lambda gate: gate[:-1].clone()),
        errors.ShapeError,
        [SINGLE_FILE, GATE, r"[23, 32]", r"must be [24, 32]"],
    ),
    "down not transposed": (
        replace(DOWN, lambda down: down.T.contiguous()),
        errors.ShapeError,
        [SINGLE_FILE, DOWN, r"[24, 32]", r"must be [32, 24]"],
    ),
    "up of three dimensions": (replace(UP, lambda up: up[None]), errors.ShapeError, [SINGLE_FILE, UP, "[1, 24, 32]"]),
    "other hidden size": (
        config(hidden_size=48),
        errors.ShapeError,
        [SINGLE_FILE, "hidden size of 48", "config.json", "of shape [24, 32]"],
    ),
    "other intermediate size": (
        config(moe_intermediate_size=25),
        errors.ShapeError,
        [SINGLE_FILE, "intermediate size of 24", "config.json says 25 (moe_intermediate_size)"],
    ),
    "no up": (drop(UP), errors.MissingTensorError, [f"copy lacks the tensor '{UP}'", "decoder layer 1"]),
    "no expert": (drop(GATE, UP, DOWN), errors.MissingTensorError, [f"lacks the tensor '{GATE}'"]),
    "fewer than the config": (
        config(num_local_experts=5),
        errors.MissingTensorError,
        ["lacks the tensor 'model.layers.0.block_sparse_moe.experts.4.w1.weight'", "says num_local_experts is 5"],
    ),
    "more than the config": (
        config(num_local_experts=3),
        errors.MissingTensorError,
        [SINGLE_FILE, "experts.3.w", "config.json says there are 3 experts (num_local_experts)"],
    ),
    "ids with a gap": (
        after(config(num_local_experts=None), rename(f"{EXPERTS}.2.", f"{EXPERTS}.9.")),
        errors.MissingTensorError,
        ["lacks the tensor 'model.layers.1.block_sparse_moe.experts.2.w1.weight'"],
    ),
    "an expert of another dtype": (
        replace(UP, lambda up: up.to(torch.bfloat16)),
        errors.UnsupportedDtypeError,
        [SINGLE_FILE, f"'{UP}' as BF16", "all experts must have one dtype"],
    ),
    "a layer of another dtype": (
        lambda d: edit_tensors(d, lambda ts: {n: t.half() if "layers.1." in n else t for n, t in ts.items()}),
        errors.UnsupportedDtypeError,
        [SINGLE_FILE, "layers.1.", "torch.float16", "all experts must have one dtype"],
    ),
    "FP8": (
        replace(UP, lambda up: up.to(torch.float8_e4m3fn)),
        errors.UnsupportedDtypeError,
        [SINGLE_FILE, f"'{UP}' as F8_E4M3", "BF16, F16, F32"],
    ),
    "biases of one expert": (
        add(UP.replace("weight", "bias"), torch.zeros(24)),
        errors.UnsupportedDtypeError,
        [SINGLE_FILE, "experts.3.w3.bias", "biases or quantisation scales"],
    ),
    "biases of gate and up alone": (
        after(fuse, add(f"{GATE_UP}_bias", torch.zeros(4, 48))),
        errors.MissingTensorError,
        [f"lacks the tensor '{FUSED_DOWN}_bias'"],
    ),
    "biases of another length": (
        after(fuse, add(f"{GATE_UP}_bias", torch.zeros(4, 24)), add(f"{FUSED_DOWN}_bias", torch.zeros(4, 32))),
        errors.ShapeError,
        [SINGLE_FILE, f"{GATE_UP}_bias", "[4, 24]", "must be [4, 48]"],
    ),
    "scales": (
        add(UP.replace("weight", "weight_scale_inv"), torch.ones(1)),
        errors.UnsupportedDtypeError,
        [SINGLE_FILE, "experts.3.w3.weight_scale_inv", "biases or quantisation scales"],
    ),
    "two sets of experts": (
        add(UP.replace("model", "talker.model"), torch.ones(24, 32)),
        errors.UnknownNamingError,
        [SINGLE_FILE, "talker", "decoder layer 1 already has other experts"],
    ),
    "two namings in a layer": (
        add(UP.replace("w3", "up_proj"), torch.ones(24, 32)),
        errors.UnknownNamingError,
        [SINGLE_FILE, "but others of its layer as"],
    ),
    "two namings in the checkpoint": (
        as_qwen_in_layer_1,
        errors.UnknownNamingError,
        [SINGLE_FILE, "layers.1.block_sparse_moe.experts.0.", "all layers must be named alike"],
    ),
    "FP8 by config.json": (
        config(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}),
        errors.UnsupportedDtypeError,
        ["config.json", "quantization_config", "the format fp8, but no tensor is", "published with these weights"],
    ),
    "INT4 in the text model's section": (
        config(
            text_config={
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "format": "pack-quantized",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                }
            }
        ),
        errors.UnsupportedDtypeError,
        ["config.json", "the format compressed-tensors, but no tensor is"],
    ),
    "GPTQ": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        errors.UnsupportedDtypeError,
        ["config.json", "the format gptq, but no tensor is"],
    ),
    "packed INT4": (
        rename(".weight", ".weight_packed"),
        errors.UnsupportedDtypeError,
        [SINGLE_FILE, "layers.0.block_sparse_moe.experts.0.w", ".weight_packed'", "packed INT4 weights"],
    ),
    "MXFP4": (
        after(fuse, rename("gate_up_proj", "gate_up_proj_blocks"), rename(".down_proj", ".down_proj_blocks")),
        errors.UnsupportedDtypeError,
        [SINGLE_FILE, "_proj_blocks'", "MXFP4 weights"],
    ),
    "an expert twice": (
        after(fuse, add(f"{GATE_UP}.weight", torch.zeros(4, 48, 32))),
        errors.FileFormatError,
        [f"holds the tensor '{GATE_UP}", f"already holds as '{GATE_UP}"],
    ),
    "fused of the wrong width": (
        after(fuse, replace(GATE_UP, lambda gate_up: gate_up[:, :-2].clone())),
        errors.ShapeError,
        [SINGLE_FILE, GATE_UP, "[4, 46, 32]", "transposed or not"],
    ),
    "fused of mixed orientation": (
        after(fuse, replace(FUSED_DOWN, lambda down: down.mT.contiguous())),
        errors.ShapeError,
        [SINGLE_FILE, "layers.1.", "transposed or not"],
    ),
    "fused of another hidden size": (
        after(fuse, config(hidden_size=48)),
        errors.ShapeError,
        [SINGLE_FILE, "hidden_size of 48"],
    ),
    "fused of two dimensions": (
        after(fuse, replace(FUSED_DOWN, lambda down: down[0].clone())),
        errors.ShapeError,
        [FUSED_DOWN, "[32, 24]"],
    ),
    "fused with unequal counts": (
        after(fuse, replace(FUSED_DOWN, lambda down: down[:3].clone())),
        errors.ShapeError,
        [FUSED_DOWN, "[3, 32, 24]"],
    ),
    "fused of another count": (
        after(fuse, config(num_local_experts=5)),
        errors.MissingTensorError,
        [SINGLE_FILE, "holds 4 experts", "config.json says there are 5 (num_local_experts)"],
    ),
    "fused without down": (
        after(fuse, drop(FUSED_DOWN)),
        errors.MissingTensorError,
        [f"lacks the tensor '{FUSED_DOWN}'"],
    ),
}
