"""What the shape and the dtype of a tensor's scales say of its coding, and that zero points fit them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fiddler.checkpoint.errors import MissingTensorError, ShapeError, UnsupportedDtypeError
from fiddler.checkpoint.formats.refusals import check_groups
from fiddler.checkpoint.formats.repacked import check_shapes, check_words
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Code, Coding, ScaleKind

SCALE_KINDS: Final = {
    "F32": ScaleKind.FLOAT32,
    "BF16": ScaleKind.BFLOAT16,
    "F16": ScaleKind.FLOAT16,
    "F8_E8M0": ScaleKind.E8M0,
    "F8_E4M3": ScaleKind.E4M3,
}


def scale_kind(scales: StoredTensor) -> ScaleKind:
    """How scales are stored, by their dtype.

    Raises:
        UnsupportedDtypeError: The dtype is not supported.
    """
    kind = SCALE_KINDS.get(scales.dtype)
    if kind is None:
        raise UnsupportedDtypeError(
            f"{scales.file} stores the scales {scales.name!r} as {scales.dtype}; supported are "
            f"{', '.join(SCALE_KINDS)}."
        )
    return kind


def group_scales(
    name: str,
    code: Code,
    shape: tuple[int, ...],
    scales: StoredTensor,
    *,
    block: tuple[int, int] | None = None,
    group: int | None = None,
    kind: ScaleKind | None = None,
    has_zeros: bool = False,
) -> Coding:
    """What a tensor's scales say of its coding: the shape of the scales decides, and what is configured must agree.

    Args:
        name: The tensor's, for messages.
        code: Of its codes.
        shape: [..., outputs, inputs].
        scales: Its scales.
        block: Outputs and inputs of a block, if scales may be of blocks.
        group: Inputs of a group, if scales may be of groups.
        kind: How scales are stored, if their dtype does not say.
        has_zeros: Whether groups have zero points.

    Raises:
        UnsupportedDtypeError: Scales are stored in a dtype that is not supported.
        ShapeError: The shape of the scales fits none of these.
    """
    kind = kind or scale_kind(scales)
    *stack, outputs, inputs = shape
    found = scales.shape
    candidates: dict[tuple[int, ...], Coding] = {}
    if block is not None:
        due = (*stack, -(-outputs // block[0]), -(-inputs // block[1]))
        candidates[due] = Coding(code, kind, min(block[1], inputs), block[0], has_zeros)
    if group is not None and inputs % group == 0:
        candidates[*stack, outputs, inputs // group] = Coding(code, kind, group, 1, has_zeros)
    per_output = Coding(code, kind, inputs, 1, has_zeros)
    candidates[*stack, outputs, 1] = per_output
    candidates[*stack, outputs] = per_output
    per_matrix = Coding(code, kind, inputs, outputs, has_zeros)
    for due in ((*stack,), (*stack, 1), (*stack, 1, 1), (), (1,)):
        candidates.setdefault(due, per_matrix)
    if found not in candidates:
        if group is not None and len(found) == len(shape) and found[-1] > 1:
            check_groups(f"{scales.file}: {name!r}", inputs, group)
        dues = " or ".join(str(list(due)) for due in list(candidates)[:3])
        raise ShapeError(
            f"{scales.file} holds the scales {scales.name!r} of shape {list(found)}; for {name!r} of shape "
            f"{list(shape)} they must be {dues}."
        )
    return candidates[found]


@dataclass(frozen=True, slots=True)
class Fit:
    """How scales fit codes, whichever dimension is the inputs; see the fields of `CodedStored`."""

    shape: tuple[int, ...]
    coding: Coding
    columns: Coding | None
    rows_fit: bool

    @property
    def orientation(self) -> dict[str, Any]:
        """What `CodedStored` takes besides shape and coding."""
        return {"columns": self.columns, "rows_fit": self.rows_fit}


def fit_scales(
    name: str,
    code: Code,
    codes: StoredTensor,
    scales: StoredTensor,
    *,
    block: tuple[int, int] | None = None,
    group: int | None = None,
    kind: ScaleKind | None = None,
) -> Fit:
    """How scales fit a tensor of codes, which may be a stack that is stored transposed: [experts, inputs, outputs].

    Args:
        name: The tensor's, for messages.
        code: Of its codes.
        codes: As they are stored; of 4-bit codes a byte holds those of two adjacent inputs.
        scales: As they are stored.
        block: See group_scales.
        group: See group_scales.
        kind: See group_scales.

    Raises:
        UnsupportedDtypeError: See group_scales.
        ShapeError: The shape of the scales fits neither orientation.
    """
    per_byte = 8 // code.bits
    shape = (*codes.shape[:-1], codes.shape[-1] * per_byte)
    columns = None
    if len(shape) == 3:
        stack, rows, outputs = codes.shape
        inputs = rows * per_byte
        columns = _columns(name, code, (stack, outputs, inputs), scales, block=block, group=group, kind=kind)
    try:
        coding = group_scales(name, code, shape, scales, block=block, group=group, kind=kind)
    except ShapeError:
        if columns is None:
            raise
        return Fit((stack, inputs, outputs), columns, columns, rows_fit=False)
    return Fit(shape, coding, columns, rows_fit=True)


def _columns(name: str, code: Code, shape: tuple[int, ...], scales: StoredTensor, **more: Any) -> Coding | None:
    """The coding of a stack [experts, outputs, inputs] whose planes are stored transposed; None if scales do not fit.

    Scales of outputs may be [experts, outputs, 1] all the same.
    """
    found = scales.shape
    turned = (found[0], found[2], found[1]) if len(found) == 3 and found[1:] != (shape[1], 1) else found
    try:
        return group_scales(name, code, shape, replace(scales, shape=turned), **more)
    except ShapeError:
        return None


def check_zeros(planes: Mapping[str, StoredTensor], coding: Coding, shape: tuple[int, ...]) -> None:
    """Refuses zero points that are not words of adjacent outputs, with as many groups as there are scales.

    Args:
        planes: Of a tensor; those with the role zeros are checked.
        coding: Of the tensor.
        shape: [..., outputs, inputs].

    Raises:
        CheckpointError: They are not.
    """
    *stack, outputs, inputs = shape
    words = -(-outputs // coding.group_outputs * coding.code.bits // 32)
    due = (*stack, words, coding.num_groups(inputs))
    check_words(planes, "zeros")
    check_shapes(planes, {"zeros": due}, f"{list(shape)} in {coding.name}")


def required(planes: Mapping[str, StoredTensor], role: str, name: str, suffix: str) -> StoredTensor:
    """One of a matrix's tensors.

    Raises:
        MissingTensorError: It is missing.
    """
    if role not in planes:
        other = next(iter(planes.values()))
        raise MissingTensorError(f"{other.file} holds {other.name!r}, but the checkpoint lacks {name + suffix!r}.")
    return planes[role]
