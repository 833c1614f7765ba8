"""A sound checkpoint: its layers, and where its experts are stored."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fiddler.checkpoint import Checkpoint, Expert
from fiddler.checkpoint.moe_config import Activation
from tests.support import checkpoints
from tests.support.tampering import SINGLE_FILE, Tensors, edit_config, edit_tensors

PARTS = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "olmoe": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "deepseek_v2": ("mlp", "gate_proj", "up_proj", "down_proj"),
}


def matrices(checkpoint: Checkpoint) -> list[torch.Tensor]:
    """Every expert's gate, up and down, in order."""
    return [
        checkpoint.tensor(view).clone()
        for layer in checkpoint.layers
        for expert in layer.experts
        for view in (expert.gate, expert.up, expert.down)
        if view is not None
    ]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("family", checkpoints.CONFIGS)
def test_a_written_checkpoint_is_the_model_to_transformers(family: str, published: dict[str, Path]) -> None:
    built = checkpoints.build(family)
    loaded = AutoModelForCausalLM.from_pretrained(published[family])
    tokens = torch.arange(3, 35)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, built(tokens).logits, rtol=0, atol=0)


def test_one_percent_in_one_expert_shows_in_the_logits(mixtral: Path) -> None:
    tokens = torch.arange(3, 67)[None]
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(mixtral)(tokens).logits
        checkpoints.scale_expert(mixtral, layer=1, expert=3, factor=1.01)
        after = AutoModelForCausalLM.from_pretrained(mixtral)(tokens).logits
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_experts_are_what_safetensors_reads(family: str, published: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(published[family])
    stored = load_file(published[family] / SINGLE_FILE)
    block, *parts = PARTS[family]
    claimed = set()
    for layer in checkpoint.layers:
        assert layer.name == f"model.layers.{layer.decoder_layer}.{block}.experts"
        for number, expert in enumerate(layer.experts):
            for view, part in zip((expert.gate, expert.up, expert.down), parts, strict=True):
                assert view is not None
                name = f"{layer.name}.{number}.{part}.weight"
                assert view.name == name
                assert torch.equal(checkpoint.tensor(view), stored[name])
                claimed.add(name)
    assert checkpoint.expert_tensor_names == claimed
    assert checkpoint.expert_bytes == sum(stored[name].nbytes for name in claimed)
    assert checkpoint.dense_bytes == sum(tensor.nbytes for tensor in stored.values()) - checkpoint.expert_bytes


@pytest.mark.parametrize("family", checkpoints.CONFIGS)
def test_layers_say_what_the_config_says(family: str, published: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(published[family])
    config = checkpoints.CONFIGS[family]
    assert checkpoint.model_type == family
    assert checkpoint.expert_dtype == torch.float32
    assert checkpoint.files == (published[family] / SINGLE_FILE,)
    first = config.get("first_k_dense_replace", 0)
    assert [layer.decoder_layer for layer in checkpoint.layers] == list(range(first, 3))
    for layer in checkpoint.layers:
        counts = [config[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if key in config]
        assert [layer.num_experts] == counts
        assert layer.hidden_size == 64
        assert layer.intermediate_size == config.get("moe_intermediate_size", config["intermediate_size"])
        assert layer.activation == Activation("silu")


def test_granite_keeps_gate_and_up_in_one_tensor(published: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(published["granitemoe"])
    model = checkpoints.build("granitemoe")
    for layer in checkpoint.layers:
        module = model.get_submodule(f"model.layers.{layer.decoder_layer}.block_sparse_moe.experts")
        gate_up, down = module.get_parameter("gate_up_proj"), module.get_parameter("down_proj")
        for number, expert in enumerate(layer.experts):
            assert expert.gate is not None
            assert torch.equal(checkpoint.tensor(expert.gate), gate_up[number, : layer.intermediate_size])
            assert torch.equal(checkpoint.tensor(expert.up), gate_up[number, layer.intermediate_size :])
            assert torch.equal(checkpoint.tensor(expert.down), down[number])


@pytest.mark.parametrize("suffix", ["", ".weight"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("intermediate_size", [96, 64, 32])  # 64: down is square; 32: gate_up is
def test_fused_layouts_hold_the_same_experts(
    tmp_path: Path, intermediate_size: int, transposed: bool, interleaved: bool, suffix: str
) -> None:
    directory = checkpoints.write(
        "mixtral", tmp_path, num_hidden_layers=2, num_local_experts=3, intermediate_size=intermediate_size
    )
    expected = matrices(Checkpoint.open(directory))
    checkpoints.fuse(directory, transposed=transposed, interleaved=interleaved, suffix=suffix)
    checkpoint = Checkpoint.open(directory)
    assert all_equal(matrices(checkpoint), expected)
    assert len(checkpoint.expert_tensor_names) == 4
    assert checkpoint.expert_bytes == sum(matrix.nbytes for matrix in expected)


def test_scaling_an_expert_in_a_transposed_layout_changes_that_expert_alone(mixtral: Path) -> None:
    checkpoints.fuse(mixtral, transposed=True)
    before = matrices(Checkpoint.open(mixtral))
    checkpoints.scale_expert(mixtral, layer=1, expert=3, factor=2.0)
    after = matrices(Checkpoint.open(mixtral))
    changed = [index for index, (a, b) in enumerate(zip(before, after, strict=True)) if not torch.equal(a, b)]
    assert changed == [(8 + 3) * 3 + 2]


def test_experts_without_a_gate(mixtral: Path) -> None:
    def as_nemotron_h(tensors: Tensors) -> Tensors:
        for old, new in (("block_sparse_moe", "mixer"), (".w3.", ".up_proj."), (".w2.", ".down_proj.")):
            tensors = {name.replace(old, new): tensor for name, tensor in tensors.items() if ".w1." not in name}
        return tensors

    edit_tensors(mixtral, as_nemotron_h)
    edit_config(mixtral, mlp_hidden_act="relu2", hidden_act=None)
    checkpoint = Checkpoint.open(mixtral)
    assert checkpoint.layers[0].activation == Activation("relu2")
    assert all(expert.gate is None for layer in checkpoint.layers for expert in layer.experts)


def test_a_sharded_checkpoint_is_the_single_one(mixtral: Path) -> None:
    single = Checkpoint.open(mixtral)
    expected = matrices(single)
    checkpoints.shard(mixtral, 3)
    sharded = Checkpoint.open(mixtral)
    assert len(sharded.files) == 3
    assert all_equal(matrices(sharded), expected)
    assert sharded.expert_tensor_names == single.expert_tensor_names
    assert (sharded.expert_bytes, sharded.dense_bytes) == (single.expert_bytes, single.dense_bytes)


def test_transformers_loads_a_sharded_checkpoint(tmp_path: Path) -> None:
    built = checkpoints.build("qwen3_moe", dtype=torch.bfloat16, seed=3)
    directory = checkpoints.write("qwen3_moe", tmp_path, dtype=torch.bfloat16, seed=3, shards=2)
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in built.state_dict().items())


def test_settings_of_a_nested_text_config_count(mixtral: Path) -> None:
    config = json.loads((mixtral / "config.json").read_bytes())
    (mixtral / "config.json").write_text(json.dumps({"model_type": "multimodal", "text_config": config}))
    checkpoint = Checkpoint.open(mixtral)
    assert checkpoint.model_type == "multimodal"
    assert checkpoint.layers[0].num_experts == 8
    assert checkpoint.layers[0].activation == Activation("silu")


def test_a_clamped_activation_is_not_called_by_the_plain_name(mixtral: Path) -> None:
    edit_config(mixtral, swiglu_limit=7.0)
    assert Checkpoint.open(mixtral).layers[0].activation == Activation("clamped_silu", limit=7.0)


def test_layers_after_the_last_are_no_experts(mixtral: Path) -> None:
    # as DeepSeek-V3 publishes its multi-token-prediction layer
    whole = Checkpoint.open(mixtral)
    edit_config(mixtral, num_hidden_layers=2)
    checkpoint = Checkpoint.open(mixtral)
    assert [layer.decoder_layer for layer in checkpoint.layers] == [0, 1]
    assert not any("layers.2." in name for name in checkpoint.expert_tensor_names)
    assert checkpoint.dense_bytes < whole.dense_bytes


def test_a_large_checkpoint_is_of_the_size_asked_for(large: Path) -> None:
    checkpoint = Checkpoint.open(large)
    total_bytes = checkpoint.dense_bytes + checkpoint.expert_bytes
    assert abs(total_bytes / 250e6 - 1) < 0.25
    assert 0.08 < checkpoint.dense_bytes / total_bytes < 0.22
    assert checkpoint.expert_dtype == torch.bfloat16
    expert: Expert = checkpoint.layers[0].experts[3]
    assert 0.02 < float(checkpoint.tensor(expert.down).float().std()) < 0.05


def test_the_tokenizer_gives_any_text_back(tmp_path: Path) -> None:
    checkpoints.write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Ünïcode, the experts\n\tand 🦜 \x00 bytes"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2
    assert max(ids) < len(tokenizer) <= checkpoints.VOCAB_SIZE
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
