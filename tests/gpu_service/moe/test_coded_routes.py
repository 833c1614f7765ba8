"""Experts in 8 and 4 bits take every route: tokens and logits are transformers' on the weights that they stand for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.errors import ShapeError, UnsupportedDtypeError
from gpu_service.model_runner.model import Model
from tests.support import reference
from tests.support.coded_layouts import GPT_OSS, SUPPORTED, Layout, write
from tests.support.routes import WAYS, Continuation, check_loss, check_way, model_of
from tests.support.tampering import edit_tensors

PROMPT = [7] * 17 + [30, 31]
NUM_TOKENS = 48
CASES: tuple[tuple[Layout, str], ...] = (
    ("separate", "fp8 small blocks"),
    ("separate", "int8 packed"),
    ("separate", "gptq"),
    ("separate", "gptq 8 bits in one group"),
    ("separate", "int8 asymmetric"),
    ("fused", "fp8 block"),
    ("fused", "awq"),
    ("fused", "int4 group 32"),
    ("fused", "int4 group 32 asymmetric"),
    ("fused", "fp4 of DeepSeek"),
    ("fused", "mxfp4"),
    ("fused", "nvfp4"),
    ("interleaved", GPT_OSS),
    ("interleaved", "fp8 channel"),
    ("interleaved", "mxfp8"),
    ("interleaved", "gptq asymmetric v2"),
    ("interleaved", "int8"),
    ("transposed", "fp8 channel"),
    ("transposed", "nvfp4 of ModelOpt"),
)
"""Every format in one layout; `make sweep` has all."""
CHOSEN = (
    "all remote",
    "all streamed",
    "all resident",
    "some resident, others remote",
    "prefetched",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices are so small that threads only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def test_every_format_is_here() -> None:
    names = {name for _, name in CASES}
    assert names >= {name for _, name in SUPPORTED} - {"nvfp4 of ModelOpt"}, "which differs from nvfp4 in names only"


@pytest.fixture(scope="module", params=CASES, ids=": ".join)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(request.param[0], request.param[1], tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(directory: Path) -> Continuation:
    return reference.generate(reference.load(directory.parent / "plain"), PROMPT, NUM_TOKENS)


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return model_of(directory)


@pytest.mark.parametrize("name", CHOSEN)
def test_tokens_are_those_of_the_plain_form_by_every_route(
    directory: Path, model: Model, expected: Continuation, name: str
) -> None:
    check_way(directory, model, WAYS[name], PROMPT, expected)


def test_tokens_are_those_of_the_plain_form_when_the_experts_are_lost(directory: Path, expected: Continuation) -> None:
    check_loss(directory, PROMPT, expected)


REFUSED = {
    ("interleaved", "fp8 small blocks"): "with gate and up rows alternating, which is supported only with a scale per",
}


@pytest.mark.parametrize(("layout", "name"), REFUSED)
def test_what_cannot_be_computed_in_place_is_refused(layout: Layout, name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedDtypeError, match=REFUSED[layout, name]):
        Checkpoint.open(write(layout, name, tmp_path))


def test_a_stack_of_matrices_has_one_multiplier_or_as_many(tmp_path: Path) -> None:
    directory = write("fused", "nvfp4", tmp_path)
    name = "model.layers.1.mlp.experts.down_proj.weight_global_scale"
    edit_tensors(directory, lambda tensors: {**tensors, name: tensors[name][:3].clone()})
    with pytest.raises(ShapeError, match=r"weight_global_scale', F32 of shape \[3, 1\]; for .* F32 of shape \[8\]"):
        Checkpoint.open(directory)
