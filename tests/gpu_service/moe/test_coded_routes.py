"""Experts in 8 and 4 bits take every route: tokens and logits are transformers' on the weights that they stand for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpu_service.model_runner.model import Model
from tests.support import coded, reference
from tests.support.coded_layouts import GPT_OSS, Layout, write
from tests.support.routes import WAYS, greedy, model_of, slots_of

PROMPT = [7] * 17 + [30, 31]
NUM_TOKENS = 48
CASES: tuple[tuple[Layout, str], ...] = (
    ("separate", "fp8 small blocks"),
    ("separate", "int4 group 32 asymmetric"),
    ("separate", "int8 packed"),
    ("separate", "nvfp4"),
    ("separate", "gptq"),
    ("separate", "gptq asymmetric v2"),
    ("separate", "gptq 8 bits in one group"),
    ("separate", "awq"),
    ("fused", "fp8 block"),
    ("fused", "int4 group 32"),
    ("fused", "fp4 of DeepSeek"),
    ("fused", "mxfp4"),
    ("interleaved", GPT_OSS),
    ("interleaved", "fp8 channel"),
    ("interleaved", "mxfp8"),
    ("interleaved", "int8"),
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
    assert names - {GPT_OSS} >= coded.FORMATS.keys() - {"nvfp4 of ModelOpt"}, "which differs from nvfp4 in names only"


@pytest.fixture(scope="module", params=CASES, ids=": ".join)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(request.param[0], request.param[1], tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(directory: Path) -> tuple[list[int], torch.Tensor]:
    return reference.generate(reference.load(directory.parent / "plain"), PROMPT, NUM_TOKENS)


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return model_of(directory)


@pytest.mark.parametrize("name", CHOSEN)
def test_tokens_are_those_of_the_plain_form_by_every_route(
    directory: Path, model: Model, expected: tuple[list[int], torch.Tensor], name: str
) -> None:
    way = WAYS[name]
    with slots_of(model, directory, way):
        tokens, logits = greedy(model, PROMPT, NUM_TOKENS)
    assert tokens == expected[0]
    assert (logits - expected[1]).abs().max() < 1e-4
    routes = model.dispatcher.selections.read_routes()
    assert {route for layer in routes for route, total in layer.items() if total} >= way.expected
