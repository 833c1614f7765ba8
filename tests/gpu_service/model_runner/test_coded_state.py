"""The dense part of a coded checkpoint: decoded while it is loaded, bit-equal to transformers' of its plain form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fiddler.checkpoint import Checkpoint
from gpu_service.model_runner.loading import load, read_config
from tests.support import coded
from tests.support.checkpoints import write

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
