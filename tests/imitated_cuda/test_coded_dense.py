"""Linear layers in codes on CUDA: decoded for each product, also within decode graphs."""

from pathlib import Path

import pytest

from fiddler.convert.recipe import CodedFormat
from gpu_service.model_runner.dense.coded import CodedLinear
from gpu_service.models.registry import architecture_of
from tests.support import reference
from tests.support.families import tiny
from tests.support.imitated_cuda import DEVICE, imitated_cuda
from tests.support.imitated_routes import MIX, PROMPT, TOLERANCE
from tests.support.rounded_dense import round_linear_layers
from tests.support.routes import greedy, model_of, slots_of

NUM_TOKENS = 4


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_tokens_are_those_of_what_the_codes_stand_for(kind: CodedFormat, tmp_path: Path) -> None:
    directory = tiny.write("mixtral", tmp_path)
    plain = architecture_of("mixtral").auto_class.from_pretrained(directory).eval()
    round_linear_layers(plain, kind)
    due_tokens, due_logits = reference.generate(plain, PROMPT, NUM_TOKENS)
    with imitated_cuda("late") as machine:
        model = model_of(directory, device=DEVICE, uses_graphs=True, dense_format=kind)
        layers = [child for child in model._module.modules() if isinstance(child, CodedLinear)]
        assert {(layer.kind, layer.coded.device.type) for layer in layers} == {(kind, "cuda")}
        with slots_of(model, directory, MIX):
            tokens, logits = greedy(model, PROMPT, NUM_TOKENS)
            assert machine.counts.graphs > 0
    assert tokens == due_tokens
    assert (logits - due_logits).abs().max() < TOLERANCE * due_logits.abs().max()
