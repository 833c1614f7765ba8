"""The dense part of a coded checkpoint: decoded while it is loaded, bit-equal to transformers' of its plain form."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fiddler.checkpoint import Checkpoint
from gpu_service.errors import ModelError
from gpu_service.model_runner.loading import load, read_config
from tests.support import coded
from tests.support.checkpoints import write
from tests.support.families import published, tiny
from tests.support.published_coders import with_biases_of_zero
from tests.support.tampering import edit_tensors

SIZES: dict[str, Any] = {"hidden_size": 64, "moe_intermediate_size": 96, "intermediate_size": 96}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["fp8 block", "fp8 channel", "int4 group 32", "int8"])
def test_dense_weights_are_those_of_the_plain_form(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plain = write("qwen3_moe", tmp_path / "plain", **SIZES)
    directory = coded.rewrite(plain, tmp_path / "coded", name, lambda tensor: "_proj." in tensor)
    reference = AutoModelForCausalLM.from_pretrained(plain, dtype=dtype).state_dict()
    loaded = load(Checkpoint.open(directory), read_config(directory), dtype).state_dict()
    assert loaded
    for key, tensor in loaded.items():
        assert torch.equal(tensor, reference[key]), key


def test_blocks_at_the_edges_may_be_partial(tmp_path: Path) -> None:
    plain = tiny.write("deepseek_v3", tmp_path / "plain", config={"kv_lora_rank": 140, "q_lora_rank": 136})
    directory = coded.rewrite(plain, tmp_path / "coded", "fp8 block", lambda tensor: "_proj" in tensor)
    checkpoint = Checkpoint.open(directory)
    shapes = {tensor.name.split(".")[-2]: tensor.shape for tensor in checkpoint.dense_tensors if "_proj" in tensor.name}
    assert shapes["kv_a_proj_with_mqa"] == (148, 64)
    assert shapes["q_b_proj"] == (96, 136)
    reference = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).state_dict()
    for key, tensor in load(checkpoint, read_config(directory), torch.float32).state_dict().items():
        assert torch.equal(tensor, reference[key]), key


@pytest.mark.parametrize(
    ("family", "further"),
    [("deepseek_v3", "model.layers.4."), ("deepseek_v4", "mtp.0."), ("mimo_v2_flash", "model.mtp.layers.0.")],
)
def test_layers_that_predict_further_tokens_are_left_out(family: str, further: str, tmp_path: Path) -> None:
    directory, _ = published.write(family, tmp_path)
    dense_bytes, expert_bytes = (checkpoint := Checkpoint.open(directory)).dense_bytes, checkpoint.expert_bytes

    def with_another_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        last = re.compile(r"(?:model\.)?layers\.3\.")
        copies = {last.sub(further, name): tensor.clone() for name, tensor in tensors.items() if last.match(name)}
        assert copies
        return {**tensors, **copies, f"{further}eh_proj.weight": torch.zeros(64, 128)}

    edit_tensors(directory, with_another_layer)
    checkpoint = Checkpoint.open(directory)
    assert (checkpoint.dense_bytes, checkpoint.expert_bytes) == (dense_bytes, expert_bytes)
    assert load(checkpoint, read_config(directory), torch.float32).state_dict()


@pytest.mark.parametrize("name", ["self_attn.k_scale", "self_attn.v_scale", "self_attn.k_proj.k_scale"])
def test_scales_of_a_kv_cache_in_8_bits_are_not_used(name: str, tmp_path: Path) -> None:
    directory, _ = published.write("minimax_m2", tmp_path)
    edit_tensors(directory, lambda tensors: {**tensors, f"model.layers.0.{name}": torch.tensor([0.5])})
    assert load(Checkpoint.open(directory), read_config(directory), torch.float32).state_dict()


def test_other_scales_without_codes_are_refused(tmp_path: Path) -> None:
    directory, _ = published.write("minimax_m2", tmp_path)
    edit_tensors(directory, lambda tensors: {**tensors, "model.layers.0.self_attn.x_scale": torch.tensor([0.5])})
    with pytest.raises(ModelError, match=r"has no place for model\.layers\.0\.self_attn\.x_scale"):
        load(Checkpoint.open(directory), read_config(directory), torch.float32)


def test_biases_of_zero_that_a_tool_added_are_left_out_and_others_refused(tmp_path: Path) -> None:
    plain = tiny.write("mixtral", tmp_path / "plain", config={"hidden_size": 64, "intermediate_size": 96})
    is_coded = re.compile(r".*(?:_proj|\.w[123])\.weight")
    directory = coded.rewrite(plain, tmp_path / "coded", "gptq", lambda tensor: is_coded.fullmatch(tensor) is not None)
    edit_tensors(directory, with_biases_of_zero)
    checkpoint = Checkpoint.open(directory)
    assert len(checkpoint.unused_tensors) > 100
    reference = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).state_dict()
    for key, tensor in load(checkpoint, read_config(directory), torch.float32).state_dict().items():
        assert torch.equal(tensor, reference[key]), key
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(directory, lambda tensors: tensors | {name: torch.ones(tensors[name].shape)})
    with pytest.raises(ModelError, match=f"has no place for {re.escape(name)}"):
        load(Checkpoint.open(directory), read_config(directory), torch.float32)
