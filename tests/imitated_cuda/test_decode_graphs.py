"""Decode as CUDA graphs: the same tokens, few launches, nothing kept that is wrong, and what cannot be captured."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from gpu_service.model_runner.attention_masks import AttentionMasks
from gpu_service.model_runner.decode_graphs import DecodeGraphs
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.forwards import Together
from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.model_runner.model import Model
from gpu_service.models.registry import architecture_of
from gpu_service.startup.model import check_graphs
from tests.support import reference
from tests.support.families import tiny
from tests.support.imitated_cuda import DEVICE, MACHINE, Machine, Schedule, imitated_cuda, operations
from tests.support.imitated_cuda.nested import leaves
from tests.support.imitated_routes import MIX, PROMPT, TOLERANCE, Case
from tests.support.routes import Continuation, greedy, model_of, slots_of

NUM_TOKENS = 5
MAX_KERNELS = 12
"""Of a layer's experts and what carries their rows and sums, in a replayed step."""


def case_of(family: str, directory: Path, num_tokens: int = NUM_TOKENS) -> Case:
    tiny.write(family, directory)
    model = architecture_of(family).auto_class.from_pretrained(directory, dtype=torch.float32).eval()
    return Case(directory, reference.generate(model, PROMPT, num_tokens))


def assert_right(actual: Continuation, expected: Continuation) -> None:
    assert actual[0] == expected[0]
    assert (actual[1] - expected[1]).abs().max() < TOLERANCE * expected[1].abs().max()


SCHEDULES: dict[str, Schedule] = {"mixtral": "late", "qwen3_moe": "compute first", "deepseek_v3": "copies first"}


@pytest.fixture(scope="module", params=SCHEDULES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def case(family: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(family, tmp_path_factory.mktemp(family))


def test_tokens_are_the_same_and_launches_few(case: Case, family: str) -> None:
    with imitated_cuda(SCHEDULES[family]) as machine:
        model = model_of(case.directory, device=DEVICE, uses_graphs=True)
        with slots_of(model, case.directory, MIX):
            assert_right(greedy(model, PROMPT, NUM_TOKENS), case.expected)
            layers = len(model.dispatcher.selections.read())
            machine.counts.clear()
            decode(model, rows=1, position=len(PROMPT) + NUM_TOKENS)
            assert layers < machine.counts.graphs <= 2 * layers + 1
            assert machine.counts.waits_in("moe", "model_runner", "gpu_experts") == layers, machine.counts.waits
            assert machine.counts.num_kernels <= MAX_KERNELS * layers, machine.counts.kernels


@pytest.mark.parametrize("name", ["phimoe", "llama4_text"])
def test_frequencies_made_in_each_forward_and_temperatures_by_position_are_captured(name: str, tmp_path: Path) -> None:
    """The temperature of this Llama-4 changes at position 31."""
    case = case_of(name, tmp_path, num_tokens=16 if name == "llama4_text" else NUM_TOKENS)
    with imitated_cuda("late") as machine:
        model = model_of(case.directory, device=DEVICE, uses_graphs=True)
        with slots_of(model, case.directory, MIX):
            assert_right(greedy(model, PROMPT, len(case.expected[0])), case.expected)
            assert machine.counts.graphs > 0
            machine.counts.clear()
            if name == "llama4_text":
                for _ in range(2):
                    decode(model, 2, torch.tensor([[30], [31]]))
                assert machine.counts.graphs == 0, "rows of two temperatures were replayed as if they had one"


@pytest.fixture
def graphed(mixtral: Case) -> Iterator[tuple[Machine, Model]]:
    with imitated_cuda("late") as machine:
        model = model_of(mixtral.directory, device=DEVICE, uses_graphs=True)
        with slots_of(model, mixtral.directory, MIX):
            yield machine, model


def decode(model: Model, rows: int, position: int | torch.Tensor) -> torch.Tensor:
    tokens = torch.arange(rows)[:, None]
    positions = position if isinstance(position, torch.Tensor) else torch.full((rows, 1), position)
    with torch.inference_mode():
        return model.forward(tokens, positions, first_row=0, wants=Logits.LAST).cpu()


def test_a_step_is_captured_by_rows_and_doubled_length(graphed: tuple[Machine, Model]) -> None:
    machine, model = graphed
    replayed = []
    for rows, position in ((1, 3), (1, 4), (1, 62), (2, 62), (2, 63), (1, 64), (1, 65), (1, 5)):
        machine.counts.clear()
        decode(model, rows, position)
        replayed.append(machine.counts.graphs > 0)
    assert replayed == [False, True, True, False, True, False, True, True]


def test_cache_memory_that_moves_is_forgotten(graphed: tuple[Machine, Model]) -> None:
    machine, model = graphed
    for _ in range(2):
        decode(model, 1, 0)
    model.cache.set_capacity(2 * model.cache.num_rows * model.cache.max_length)
    machine.counts.clear()
    first = decode(model, 1, 0)
    assert machine.counts.graphs == 0
    torch.testing.assert_close(decode(model, 1, 0), first)
    assert machine.counts.graphs > 0


def test_what_cannot_be_captured_is_computed_as_before(
    mixtral: Case, graphed: tuple[Machine, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, model = graphed
    graphs = model._forward
    assert isinstance(graphs, DecodeGraphs)
    inner = graphs._module.forward

    def waits(*arguments: object, **more: object) -> object:
        torch.zeros(1, device=DEVICE).item()
        return inner(*arguments, **more)

    monkeypatch.setattr(graphs._module, "forward", waits)
    machine.counts.clear()
    assert_right(greedy(model, PROMPT, len(mixtral.expected[0])), mixtral.expected)
    assert machine.counts.graphs == 0
    assert machine.graph is None, "the capture was ended"


def test_a_kernel_is_computed_before_it_is_captured(mixtral: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may load or choose something at the first call of its kind, which a capture forbids."""
    seen: dict[bool, set[Any]] = {False: set(), True: set()}
    compute = operations.compute

    def noted(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        forms = tuple((each.shape, each.dtype) for each in leaves((args, kwargs)) if isinstance(each, torch.Tensor))
        seen[MACHINE.is_capturing].add((func, forms))
        return compute(func, args, kwargs)

    monkeypatch.setattr(operations, "compute", noted)
    with imitated_cuda("late"):
        model = model_of(mixtral.directory, device=DEVICE, uses_graphs=True)
        with slots_of(model, mixtral.directory, MIX):
            for _ in range(2):
                decode(model, 1, 3)
            assert model.uses_graphs
    assert seen[True]
    assert seen[True] <= seen[False]


def _no_position_moves(patch: pytest.MonkeyPatch) -> None:
    begin = KvCache.begin_captured
    patch.setattr(
        KvCache,
        "begin_captured",
        lambda cache, positions, length, **more: begin(cache, torch.zeros_like(positions), length, **more),
    )


def _no_mask(patch: pytest.MonkeyPatch) -> None:
    masks = AttentionMasks.of
    patch.setattr(
        AttentionMasks, "of", lambda mask, positions, length: masks(mask, torch.full_like(positions, length), length)
    )


def _sums_are_lost(patch: pytest.MonkeyPatch) -> None:
    replay = DecodeGraphs._replay

    def lost(graphs: DecodeGraphs, step: Any, *inputs: torch.Tensor) -> torch.Tensor:
        for piece in step.pieces:
            piece.sums = None if piece.sums is None else torch.zeros_like(piece.sums)
        return replay(graphs, step, *inputs)

    patch.setattr(DecodeGraphs, "_replay", lost)


@pytest.mark.parametrize("plant", [_no_position_moves, _no_mask, _sums_are_lost])
def test_a_replay_that_gives_other_logits_is_noticed_and_graphs_are_left_out(
    plant: Callable[[pytest.MonkeyPatch], None],
    mixtral: Case,
    graphed: tuple[Machine, Model],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, model = graphed
    if plant is _no_mask:  # only what is captured is wrong
        monkeypatch.setattr(DecodeGraphs, "_captured", _with(plant, DecodeGraphs._captured))
    else:
        plant(monkeypatch)
    with structlog.testing.capture_logs() as logs:
        check_graphs(model)  # as a service does at its start
        assert not model.uses_graphs
        assert_right(greedy(model, PROMPT, len(mixtral.expected[0])), mixtral.expected)
        machine.counts.clear()
        for position in (0, 1, 2):
            decode(model, 1, position)
    assert machine.counts.graphs == 0
    warnings = [each for each in logs if each["event"] == "decode is not captured as CUDA graphs"]
    assert [each["reason"].split(" by ")[0] for each in warnings] == ["replayed logits differ"]


def test_a_service_checks_graphs_at_its_start(graphed: tuple[Machine, Model]) -> None:
    machine, model = graphed
    with structlog.testing.capture_logs() as logs:
        check_graphs(model)
    assert [each["event"] for each in logs] == ["decode captured as CUDA graphs"]
    machine.counts.clear()
    decode(model, 1, 5)
    assert machine.counts.graphs == len(model.dispatcher.selections.read()) + 1


def _with(plant: Callable[[pytest.MonkeyPatch], None], method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, during which a fault is planted."""

    def planted(*arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            return method(*arguments)

    return planted


def test_a_step_is_compared_once(graphed: tuple[Machine, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = graphed
    eager: list[int] = []
    compute = Together._compute

    def counted(together: Together, token_ids: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        eager.append(len(token_ids))
        return compute(together, token_ids, *more, **named)

    monkeypatch.setattr(Together, "_compute", counted)
    for _ in range(4):
        decode(model, 1, 3)
    assert eager == [1, 1], "as a warm-up, and beside its first replay"
    for _ in range(4):
        decode(model, 2, 3)
    assert eager == [1, 1, 2, 2]


def test_a_prompts_chunk_of_one_token_has_no_logits(graphed: tuple[Machine, Model]) -> None:
    _, model = graphed
    token, position = torch.tensor([[5]]), torch.tensor([[3]])
    with torch.inference_mode():
        sizes = [
            len(model.forward(token, position, first_row=0, wants=wants)) for wants in 2 * [Logits.LAST, Logits.NONE]
        ]
    assert sizes == [1, 0, 1, 0]
