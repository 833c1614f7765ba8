"""`make sweep`: every format of coded weights in every layout by every route that make test leaves out.

Greedy tokens and logits are transformers' on the weights that the codes stand for.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpu_service.model_runner.model import Model
from tests.gpu_service.moe.test_coded_routes import CASES, CHOSEN, NUM_TOKENS, PROMPT
from tests.support import reference
from tests.support.coded_layouts import SUPPORTED, write
from tests.support.routes import WAYS, Continuation, check_loss, check_way, model_of

REST = [case for case in SUPPORTED if case not in CASES]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """With such small matrices, threads would only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module", params=REST, ids=": ".join)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(request.param[0], request.param[1], tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(directory: Path) -> Continuation:
    return reference.generate(reference.load(directory.parent / "plain"), PROMPT, NUM_TOKENS)


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return model_of(directory)


@pytest.mark.parametrize("name", CHOSEN)
def test_tokens_are_those_of_the_plain_form(directory: Path, model: Model, expected: Continuation, name: str) -> None:
    check_way(directory, model, WAYS[name], PROMPT, expected)


def test_tokens_are_those_of_the_plain_form_when_the_experts_are_lost(directory: Path, expected: Continuation) -> None:
    check_loss(directory, PROMPT, expected)
