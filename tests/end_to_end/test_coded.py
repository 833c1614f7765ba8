"""Checkpoints in 8 and 4 bits through both services: transformers' tokens on the weights that the codes stand for."""

from pathlib import Path
from typing import Any

import pytest

from client import Client, GenerationChunk
from pair import PairError
from tests.support import coded, reference
from tests.support.checkpoints import write, write_tokenizer
from tests.support.pairs import WarmPair, start

NUM_TOKENS = 16
SIZES: dict[str, Any] = {"hidden_size": 64, "moe_intermediate_size": 96, "intermediate_size": 96}


@pytest.mark.parametrize("name", coded.FORMATS)
def test_tokens_are_those_of_the_plain_form(name: str, tmp_path: Path) -> None:
    plain = write("qwen3_moe", tmp_path / "plain", eos_token_id=None, **SIZES)
    write_tokenizer(plain)
    directory = coded.rewrite(plain, tmp_path / "coded", name, lambda tensor: "_proj." in tensor)
    model = reference.load(plain)
    with start(directory) as pair, Client(pair.target) as client:
        for prompt in reference.PROMPTS:
            expected, _ = reference.generate(model, prompt, NUM_TOKENS)
            generated = client.generate(prompt, max_tokens=NUM_TOKENS, temperature=0)
            assert [
                token for event in generated if isinstance(event, GenerationChunk) for token in event.token_ids
            ] == expected


def test_services_on_different_formats_do_not_meet(tmp_path: Path) -> None:
    plain = write("qwen3_moe", tmp_path / "plain", eos_token_id=None, **SIZES)
    write_tokenizer(plain)
    directory = coded.rewrite(plain, tmp_path / "coded", "int4 group 32", lambda tensor: "_proj." in tensor)
    path = tmp_path / "log"
    with path.open("wb") as log:
        pair = start(plain, log=log)
        other = WarmPair(directory, cpu_arguments=("--listen", pair.experts, "--dtype", "float32"), log=log)
        try:
            other.start("cpu_expert_service")
            other.wait_until_serving(pair.experts)
            pair.start("gpu_service")
            with pytest.raises(PairError):
                pair.wait_until_serving(timeout_seconds=60)
        finally:
            pair.close()
            other.close()
    text = path.read_text()
    print(text)
    assert "Traceback" not in text
    assert "weight_format: the caller expects " in text
