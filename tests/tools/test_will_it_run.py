"""The table of published models: as the formulas give it, of families that run, and with sizes that are known."""

import pytest

from gpu_service.models.families import VERIFIED
from gpu_service.startup.estimate import Sizes, Speeds, limits_gib, seconds_per_token
from tests.support.pages import text_of
from tools import will_it_run
from tools.published_models import BYTES_PER_WEIGHT, MODELS, PublishedModel
from tools.will_it_run import Fit, fit

BY_NAME = {model.name: model for model in MODELS}
QWEN3 = BY_NAME["Qwen/Qwen3-30B-A3B"]
BILLIONS_OF_A_TOKEN = {
    "Qwen/Qwen3-30B-A3B": 3.3,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 12.9,
    "openai/gpt-oss-120b": 5.1 + 0.58,  # who do not count the input embeddings
    "deepseek-ai/DeepSeek-V3": 37,
    "Qwen/Qwen3-235B-A22B": 22,
    "allenai/OLMoE-1B-7B-0924": 1.3,
}
"""Active parameters, as the models' authors state them."""


def test_the_pages_are_what_the_formulas_give() -> None:
    assert text_of("docs/will_it_run.md") == will_it_run.page(), "make will-it-run"
    readme = text_of("README.md")
    assert will_it_run.readme(readme) == readme, "make will-it-run"


def test_a_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^README.md needs one "):
        will_it_run.readme("# fiddler\n")


def test_twenty_models_of_verified_families_are_listed() -> None:
    assert len(BY_NAME) == 20
    assert {model.family for model in MODELS} <= VERIFIED.keys()
    assert {model.stored_as for model in MODELS} <= BYTES_PER_WEIGHT.keys()


@pytest.mark.parametrize("name", BILLIONS_OF_A_TOKEN)
def test_sizes_agree_with_the_stated_number_of_active_parameters(name: str) -> None:
    model = BY_NAME[name]
    active = model.dense_weights + model.layers * model.chosen * model.weights_of_an_expert
    assert active / 1e9 == pytest.approx(BILLIONS_OF_A_TOKEN[name], rel=0.06)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_dense_weights_are_a_small_part(model: PublishedModel) -> None:
    assert 0.01 < model.dense_weights / (model.billions * 1e9) < 0.15


def test_the_first_format_that_fits_is_taken() -> None:
    # 58 GB of experts in bf16 are 54 GiB, and the services take 6 more
    assert fit(QWEN3, 60, has_gpu=True) is not None
    assert [fit(QWEN3, gib, has_gpu=True).stored_as for gib in (60, 59, 33, 32, 22)] == [  # type: ignore[union-attr]
        *("bfloat16", "int8", "int8", "int4", "int4")
    ]
    assert fit(QWEN3, 21, has_gpu=True) is None
    assert fit(QWEN3, 22, has_gpu=False) is None, "without a GPU the dense weights are in memory, too"


def test_dense_weights_that_no_gpu_of_that_size_holds_do_not_fit() -> None:
    large = BY_NAME["deepseek-ai/DeepSeek-V3"]
    assert fit(large, 4096, has_gpu=True) is None
    assert fit(large, 4096, has_gpu=False) is not None


def test_a_cell_has_the_format_and_the_bound() -> None:
    assert (Fit("bfloat16", 20.4).cell, Fit("int4", 3.44).cell) == ("bf16: 20", "int4: 3.4")


def test_the_bound_is_reading_once() -> None:
    sizes = Sizes(dense_bytes=2 * 10**9, expert_bytes=64 * 10**9, bytes_per_token=4 * 10**9, num_experts=16)
    assert seconds_per_token(sizes, Speeds(60e9)) == pytest.approx(0.1)
    # half of the experts on the GPU: it reads 2 + 2 GB, while the host reads 2 GB
    assert seconds_per_token(sizes, Speeds(50e9, 1000e9), resident=8) == pytest.approx(0.002 + 0.04)
    assert limits_gib(sizes, on_cpu=True) == (62, 6)
    assert limits_gib(sizes, on_cpu=False) == (62, 4)
