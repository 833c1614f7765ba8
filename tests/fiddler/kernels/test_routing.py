"""The routers of MoE layers in one call, by every tier: held against the same steps in PyTorch."""

from collections.abc import Iterator

import pytest
import torch

from fiddler.kernels.linear import LinearKernel
from fiddler.kernels.native import NativeError, Pool, available_tiers
from fiddler.kernels.routing import RouterKernel, RouterWeights, Scoring

HIDDEN = 96


@pytest.fixture(scope="module", params=available_tiers())
def kernel(request: pytest.FixtureRequest) -> Iterator[LinearKernel]:
    pool = Pool([0, 1][: max(1, torch.get_num_threads())])
    yield LinearKernel(pool, request.param)
    pool.close()


def _weight(experts: int, hidden: int = HIDDEN) -> torch.Tensor:
    """Whole numbers, so that logits are exact and a tie is a tie."""
    generator = torch.Generator().manual_seed(experts)
    return torch.randint(-3, 4, (experts, hidden), generator=generator).bfloat16()


def _rows(number: int, hidden: int = HIDDEN) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return (torch.randint(-8, 9, (number, hidden), generator=generator) / 16).bfloat16()


def _by_choice(scores: torch.Tensor, choice: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of the best by another score; of equal ones the first."""
    ids = torch.sort(choice, dim=-1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, ids), ids


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("experts", "k"), [(8, 2), (128, 8), (3, 3), (61, 1)])
@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("rounds", [True, False])
def test_softmax_before_the_choice(
    kernel: LinearKernel, rows: int, experts: int, k: int, *, normalizes: bool, rounds: bool
) -> None:
    weight, hidden = _weight(experts), _rows(rows)
    router = RouterWeights(
        weight=weight, k=k, scoring=Scoring.SOFTMAX, normalizes=normalizes, rounds_weights=rounds, factor=1.5
    )
    logits, weights, ids = RouterKernel(kernel, router).route(hidden)
    due_logits = (hidden.double() @ weight.double().T).bfloat16().float()
    assert torch.equal(logits, due_logits)
    due, due_ids = _by_choice(torch.softmax(due_logits, dim=-1), due_logits, k)
    due = (due / due.sum(dim=-1, keepdim=True) if normalizes else due) * 1.5
    assert torch.equal(ids.long(), due_ids)
    assert torch.allclose(weights, due, rtol=2.0**-7 if rounds else 1e-5)
    assert not rounds or torch.equal(weights, weights.bfloat16().float())


def test_softmax_of_the_chosen_with_biases(kernel: LinearKernel) -> None:
    weight, hidden, bias = _weight(32), _rows(3), torch.arange(32).bfloat16() / 4
    router = RouterWeights(weight=weight, bias=bias, k=4, scoring=Scoring.SOFTMAX_OF_CHOSEN)
    logits, weights, ids = RouterKernel(kernel, router).route(hidden)
    due_logits = (hidden.double() @ weight.double().T + bias.double()).bfloat16().float()
    assert torch.equal(logits, due_logits)
    chosen, due_ids = _by_choice(due_logits, due_logits, 4)
    assert torch.equal(ids.long(), due_ids)
    assert torch.allclose(weights, torch.softmax(chosen, dim=-1))


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (8, 4), (8, 1), (32, 2)])
def test_sigmoid_with_corrections_and_groups(kernel: LinearKernel, groups: int, kept: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, hidden = torch.randn(64, HIDDEN, generator=generator).bfloat16() / 8, _rows(6)
    corrections = torch.rand(64, generator=generator)
    k = min(6, kept * 64 // groups)
    router = RouterWeights(
        weight=weight,
        k=k,
        scoring=Scoring.SIGMOID,
        keeps_logits=True,
        normalizes=True,
        added=1e-20,
        factor=2.5,
        corrections=corrections,
        groups=groups,
        kept_groups=kept,
    )
    logits, weights, ids = RouterKernel(kernel, router).route(hidden)
    due_logits = hidden.double() @ weight.double().T
    assert torch.allclose(logits.double(), due_logits, rtol=1e-5, atol=1e-5)
    scores = torch.sigmoid(due_logits)
    choice = scores + corrections.double()
    by_group = choice.view(6, groups, -1)
    sums = by_group.topk(min(2, by_group.shape[-1]), dim=-1).values.sum(dim=-1)
    is_kept = torch.zeros(6, groups, dtype=torch.bool).scatter(1, sums.topk(kept, dim=-1).indices, True)
    choice = choice.masked_fill(~is_kept.repeat_interleave(64 // groups, 1), float("-inf"))
    due, due_ids = _by_choice(scores, choice, k)
    assert torch.equal(ids.long(), due_ids)
    assert torch.allclose(weights.double(), due / due.sum(dim=-1, keepdim=True) * 2.5, rtol=1e-5)


def test_what_is_not_a_number_is_chosen_and_stays_one(kernel: LinearKernel) -> None:
    hidden = _rows(2)
    hidden[1, 3] = float("nan")
    router = RouterKernel(kernel, RouterWeights(weight=_weight(8), k=2, scoring=Scoring.SOFTMAX))
    _, weights, ids = router.route(hidden)
    assert weights[0].isfinite().all()
    assert weights[1].isnan().all()
    assert all(len(set(row)) == 2 and set(row) <= set(range(8)) for row in ids.tolist())


def test_what_does_not_fit_is_refused(kernel: LinearKernel) -> None:
    weight = _weight(8)
    for wrong in ({"k": 9}, {"k": 0}, {"k": 2, "groups": 3}, {"k": 2, "corrections": torch.zeros(7)}):
        with pytest.raises(NativeError):
            RouterKernel(kernel, RouterWeights(weight=weight, scoring=Scoring.SIGMOID, **wrong))
    router = RouterKernel(kernel, RouterWeights(weight=weight, k=2, scoring=Scoring.SOFTMAX))
    for rows in (_rows(2).float(), _rows(2)[0], _rows(2, HIDDEN - 2)):
        with pytest.raises(NativeError, match=r"^rows: expected bfloat16"):
            router.route(rows)
    few = RouterWeights(weight=weight, k=5, scoring=Scoring.SOFTMAX, groups=2, kept_groups=1)
    with pytest.raises(NativeError, match="size"):
        RouterKernel(kernel, few).route(_rows(1))
