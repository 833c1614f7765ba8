"""Checks a result with the loader that will serve it, before it gets its name."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from fiddler.checkpoint import Checkpoint, CheckpointLayer
from fiddler.checkpoint.views import MatrixView
from fiddler.coding import CodedTensor, dequantize
from fiddler.convert.errors import ConversionError
from fiddler.convert.plan import Plan
from fiddler.convert.quantize import quantize
from fiddler.convert.recipe import CodedFormat

_ROWS: Final = 8
"""Compared of a matrix."""


def verify(directory: Path, source: Checkpoint, plan: Plan) -> None:
    """Opens a result and compares it with its source: all shapes, and rows of the first and last expert of a layer.

    That the files hold what was computed is known by then (`writing`); this shows that what was computed is found where
    it belongs.

    Raises:
        CheckpointError: It cannot be opened.
        ConversionError: It differs from what the source becomes.
    """
    with closing(Checkpoint.open(directory)) as result:
        if _sizes(result) != _sizes(source):
            raise ConversionError(f"{directory}: its experts are not those of {source.directory}.")
        names = {item.name for item in plan.items if not item.is_expert}
        if {stored.name for stored in (*result.dense_tensors, *result.unused_tensors)} != names:
            raise ConversionError(f"{directory}: its dense tensors are not those of {source.directory}.")
        result.check_scales()
        for ours, theirs in zip(result.layers, source.layers, strict=True):
            _compare(result, ours, source, theirs, plan.recipe.experts)


def _sizes(checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    return [
        (layer.decoder_layer, layer.num_experts, layer.hidden_size, layer.intermediate_size)
        for layer in checkpoint.layers
    ]


def _compare(
    result: Checkpoint, ours: CheckpointLayer, source: Checkpoint, theirs: CheckpointLayer, kind: CodedFormat
) -> None:
    for number in {0, ours.num_experts - 1}:
        expected = theirs.experts[number].views
        found = ours.experts[number].views
        if found.keys() != expected.keys():
            raise ConversionError(f"{result.directory}: expert {number} of {ours.name} lacks a matrix of its source.")
        for role, view in found.items():
            due = _rows(source, expected[role])
            if not role.endswith("_bias"):
                due = dequantize(quantize(due, kind))
            if not torch.equal(_rows(result, view).float(), due.float()):
                raise ConversionError(
                    f"{view.file}: the tensor {view.name!r} is not what {expected[role].name!r} of "
                    f"{expected[role].file} becomes."
                )


def _rows(checkpoint: Checkpoint, view: MatrixView) -> torch.Tensor:
    """The first rows of a matrix."""
    matrix = checkpoint.matrix(view)
    if isinstance(matrix, CodedTensor):
        codes = matrix.codes[:_ROWS]
        return dequantize(replace(matrix, codes=codes, shape=(len(codes), matrix.shape[1])))
    return matrix[:_ROWS]
