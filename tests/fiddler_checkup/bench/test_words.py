"""The bound, the parts and the answer in words, from counters that are made up."""

from dataclasses import replace
from typing import Any

import pytest

from client import ModelInfo
from fiddler_checkup.bench.bound import bound_of, expert_bytes_per_step
from fiddler_checkup.bench.cases import Case, Measurement, standard_cases
from fiddler_checkup.bench.counters import Counters
from fiddler_checkup.bench.words import explain, parts_of

GB = 1e9
MODEL_FIELDS: dict[str, Any] = dict.fromkeys(ModelInfo.__dataclass_fields__)
MODEL = ModelInfo(
    **{
        **MODEL_FIELDS,
        "name": "qwen",
        "dtype": "bfloat16",
        "num_experts": 128,
        "num_experts_per_token": 8,
        "dense_bytes": int(6 * GB),
        "dense_format": "int8",
        "dense_memory_bytes": int(3 * GB),
        "expert_bytes": int(58 * GB),
        "max_context_tokens": 4096,
    }
)
READ = 58 * GB / 16
"""What one token reads of the experts."""


def _measurement(*, tokens_per_second: float = 10.0, rows: int = 1, **changes: Any) -> Measurement:
    """100 steps: 40 ms of experts, 10 ms of messages and 30 ms of the dense part each, unless changed."""
    counters = Counters(
        parts={"cpu": 4.0, "hop": 1.0, "gpu": 0.0},
        layer_seconds=5.0,
        step_seconds=8.0,
        prefill_seconds=0.0,
        routes={"resident": 0.0, "streamed": 0.0, "remote": 800.0},
        read_bytes=100 * READ,
        read_seconds=100 * READ / (45 * GB),
        limit=50 * GB,
    )
    return Measurement(
        case=Case(prompt=16, generated=128, streams=rows),
        tokens_per_second=tokens_per_second,
        spread=(tokens_per_second, tokens_per_second),
        seconds_per_step=rows / tokens_per_second,
        counters=replace(counters, **changes),
        steps=100,
    )


def test_one_token_reads_its_experts_and_the_dense_weights() -> None:
    assert expert_bytes_per_step(MODEL, 1) == pytest.approx(READ)
    bound = bound_of(_measurement(), MODEL, on_cpu=True)
    assert bound is not None
    assert bound.tokens_per_second == pytest.approx(50 * GB / (READ + 3 * GB))


def test_with_a_gpu_only_remote_experts_are_read() -> None:
    half = _measurement(routes={"resident": 400.0, "streamed": 0.0, "remote": 400.0})
    bound = bound_of(half, MODEL, on_cpu=False)
    assert bound is not None
    assert bound.bytes_per_step == pytest.approx(READ / 2)


def test_streams_share_experts_that_several_of_them_choose() -> None:
    assert 15 * READ > expert_bytes_per_step(MODEL, 16) > 10 * READ
    assert expert_bytes_per_step(MODEL, 10**6) == pytest.approx(58 * GB)


def test_a_prompt_has_no_bound_of_memory() -> None:
    prefill = replace(_measurement(), case=Case(prompt=512, generated=1))
    assert bound_of(prefill, MODEL, on_cpu=True) is None
    assert bound_of(_measurement(limit=0.0), MODEL, on_cpu=True) is None


def test_parts_add_up_to_the_step() -> None:
    parts = {part.key: part.seconds for part in parts_of(_measurement(), on_cpu=True)}
    assert parts == pytest.approx({"experts": 0.04, "dense": 0.03, "rest": 0.02, "messages": 0.01})


def test_the_prompts_steps_are_no_part_of_a_token() -> None:
    """As many seconds of layers again in prompts' steps, and rounds that were slower than the median."""
    prompts = _measurement(
        parts={"cpu": 8.0, "hop": 2.0, "gpu": 0.0}, layer_seconds=10.0, prefill_seconds=8.0, tokens_per_second=20.0
    )
    parts = {part.key: part.seconds for part in parts_of(prompts, on_cpu=True)}
    # a token takes 50 ms, of which layers have 10 of 16 parts
    assert parts == pytest.approx({"experts": 0.025, "messages": 0.00625, "dense": 0.01875})


CASES = {
    "normal": (
        _measurement(
            tokens_per_second=6.0, parts={"cpu": 12.0, "hop": 0.5, "gpu": 0.0}, layer_seconds=12.5, step_seconds=16
        ),
        "Your speed is normal: 6 tokens/s are 80% of",
        "The largest part is reading experts at 45 GB/s, near the memory's limit. Fewer bytes help: --expert",
    ),
    "a little low": (_measurement(tokens_per_second=3.0), "Your speed is a little low: 3 tokens/s are 40% of", ""),
    "low": (_measurement(tokens_per_second=1.0), "Your speed is low: 1 tokens/s are 13% of", ""),
    "a kernel that reads slowly": (
        _measurement(read_seconds=100 * READ / (10 * GB)),
        "",
        "The largest part is reading experts, at 10 GB/s of the 50 that were measured at the start: other programs",
    ),
    "messages": (
        _measurement(parts={"cpu": 1.0, "hop": 4.0, "gpu": 0.0}),
        "",
        "The largest part is the way between the services",
    ),
    "dense": (
        _measurement(step_seconds=9.9, layer_seconds=1.0),
        "",
        "The largest part is dense, 3 GB read for each token: a GPU takes it over (--device cuda), and --dense-format ",
    ),
    "the rest": (_measurement(tokens_per_second=2.0), "", "The largest part is outside the model"),
    "unmeasured": (
        _measurement(limit=0.0),
        "The memory's bound is not known",
        "The largest part is reading experts at 45 GB/s. Fewer bytes help: ",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_answer_says_what_takes_the_time_and_what_changes_it(name: str) -> None:
    measurement, verdict, advice = CASES[name]
    bound = bound_of(measurement, MODEL, on_cpu=True)
    first, _, last = explain(measurement, bound, MODEL, on_cpu=True, kernel="avx2")
    assert first.startswith(verdict)
    assert last.startswith(advice)


def test_a_dense_part_in_4_bits_is_not_to_be_coded_again() -> None:
    model = replace(MODEL, dense_format="int4, int8")
    assert explain(CASES["dense"][0], None, model, on_cpu=True, kernel="avx2")[-1].endswith("over (--device cuda).")


def test_pytorchs_kernel_is_blamed() -> None:
    for limit in (50 * GB, 0.0):
        slow = _measurement(read_seconds=100 * READ / (10 * GB), limit=limit)
        last = explain(slow, None, MODEL, on_cpu=True, kernel="pytorch")[-1]
        assert last.startswith("The largest part is computing experts, which reads 10 GB/s: PyTorch does it; ")


def test_a_small_model_is_not_called_slow() -> None:
    small = replace(MODEL, dense_memory_bytes=10**6, expert_bytes=16 * 10**6)
    measurement = _measurement(tokens_per_second=100.0)
    bound = bound_of(measurement, small, on_cpu=True)
    assert "That is normal for so small a model" in explain(measurement, bound, small, on_cpu=True, kernel="avx2")[0]


def test_cases_fit_the_context() -> None:
    names = [each.name for each in standard_cases(MODEL, prompt=512, generated=128, streams=(1, 4), beams=4)]
    assert names == ["prefill 512", "decode 128", "decode 128 x 4", "decode 128, 4 beams"]
    short = replace(MODEL, max_context_tokens=64)
    cases = standard_cases(short, prompt=512, generated=128, streams=(1,), beams=0)
    assert [(case.prompt, case.generated) for case in cases] == [(63, 1), (16, 48)]
