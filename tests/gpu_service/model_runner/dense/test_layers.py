from torch import nn

from gpu_service.model_runner.dense.layers import codable_weights


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(100, 64)
        self.projection = nn.Linear(64, 48)
        self.gate = nn.Linear(64, 32)
        self.shared_gate = nn.Linear(64, 1)
        self.head = nn.Linear(64, 100, bias=False)


def _names(model: nn.Module, num_experts: set[int]) -> list[list[str]]:
    return [weight.names for weight in codable_weights(model, num_experts)]


def test_a_layer_with_as_many_outputs_as_there_are_experts_is_taken_for_a_router() -> None:
    assert _names(_Model(), {32}) == [["projection"], ["head"]]
    assert _names(_Model(), {8, 128}) == [["projection"], ["gate"], ["head"]]


def test_a_weight_that_is_shared_is_one() -> None:
    model = _Model()
    model.head.weight = model.embeddings.weight
    tied, *_ = codable_weights(model, {8})
    assert tied.names == ["embeddings", "head"]
    assert [child for *_, child in tied.linears] == [model.head]
    assert [child for *_, child in tied.embeddings] == [model.embeddings]


def test_a_weight_that_another_kind_of_module_uses_stays() -> None:
    model = _Model()
    model.odd = nn.Bilinear(1, 1, 1)
    model.odd.weight = model.projection.weight
    assert _names(model, {32}) == [["head"]]
