"""Plain weights, in tests that compute with them themselves."""

import torch

from fiddler.checkpoint.views import MatrixView, WeightView
from fiddler.coding import CodedTensor
from fiddler.expert_math import Matrix


def plain(matrix: Matrix | None) -> torch.Tensor:
    """A matrix that the test knows to be there and not coded."""
    assert matrix is not None
    assert not isinstance(matrix, CodedTensor)
    return matrix


def plain_view(view: MatrixView | None) -> WeightView:
    """The same of a checkpoint's view."""
    assert isinstance(view, WeightView)
    return view
