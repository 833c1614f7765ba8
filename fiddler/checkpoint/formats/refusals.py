"""Formats that are not served, and tensors that disagree with what config.json says of them. No weight is read here."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch

from fiddler.checkpoint.errors import MissingTensorError, ShapeError, UnsupportedDtypeError
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import CodedTensor, decode_scales

SERVED: Final = (
    "fp8, fbgemm_fp8, mxfp8, mxfp4, compressed-tensors, modelopt, gptq, awq, auto-round, or plain BF16, F16 or F32"
)
"""Values of quant_method, for the ends of sentences."""

_METHODS: Final = {
    "aqlm": "AQLM",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "fp_quant": "FP-Quant",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "metal": "transformers' Metal format",
    "quanto": "Quanto",
    "quark": "Quark",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
"""Names of quant_method that are not served, as their authors write them."""

_TENSORS: Final = (
    (re.compile(r".*\.(?:gate_up|down)_proj_(?:blocks|scales)"), "MXFP4"),
    (re.compile(r".*\.(?:w[123]|\w+_proj)\.weight_packed"), "packed INT4"),
    (re.compile(r".*\.(?:w[123]|\w+_proj)\.(?:qweight|qzeros)"), "GPTQ or AWQ"),
    (re.compile(r".*\.(?:w[123]|\w+_proj)\.weight_scale(?:_inv)?"), "FP8"),
    (re.compile(r".*\.weight\.(?:absmax|quant_map|quant_state\..+)"), "bitsandbytes"),
    (re.compile(r".*\.(?:trellis|q_weight|q_scale)"), "EXL2 or EXL3"),
    (re.compile(r".*\.W_q"), "HQQ"),
)
_CODES: Final = re.compile(r"F8_.*|F4")
_BYTES: Final = ("U8", "I8")


def unknown_method(method: object, path: Path) -> UnsupportedDtypeError:
    """The error for a quant_method that is not served."""
    if method is None:
        return UnsupportedDtypeError(f"{path}: quantization_config names no quant_method; served are {SERVED}.")
    name = _METHODS.get(str(method), repr(method))
    return UnsupportedDtypeError(
        f"{path}: quantization_config.quant_method: {name} is not served; served are {SERVED}."
    )


def mlx_error(path: Path) -> UnsupportedDtypeError:
    """The error for a checkpoint of MLX, whose quantization_config has bits and groups and no quant_method."""
    return UnsupportedDtypeError(
        f"{path}: quantization_config has bits and group_size and no quant_method, as MLX writes it: MLX's format is "
        f"not served; served are {SERVED}."
    )


def check_plain(tensors: Iterable[StoredTensor], config: Path) -> None:
    """Refuses coded tensors of a checkpoint whose config.json names no format.

    Raises:
        UnsupportedDtypeError: A tensor has a name or a dtype that only coded weights have.
    """
    for tensor in tensors:
        for pattern, name in _TENSORS:
            if pattern.fullmatch(tensor.name):
                raise UnsupportedDtypeError(
                    f"{tensor.file} holds the tensor {tensor.name!r}, as {name} weights do, but {config} has no "
                    f"quantization_config that says so; served are {SERVED}."
                )
        if is_coded(tensor):
            raise UnsupportedDtypeError(
                f"{tensor.file} stores the tensor {tensor.name!r} as {tensor.dtype}, but {config} has no "
                f"quantization_config that names its format; served are {SERVED}."
            )


def check_rest(tensors: Iterable[StoredTensor], name: str, config: Path) -> None:
    """Refuses tensors that belong to no matrix of the checkpoint's format, though they are coded.

    Args:
        tensors: Those that stand for themselves.
        name: Of the format.
        config: The path of config.json.

    Raises:
        MissingTensorError: Codes have no scales.
        UnsupportedDtypeError: A tensor has a name that another format uses.
    """
    for tensor in tensors:
        if is_coded(tensor):
            raise MissingTensorError(
                f"{tensor.file} stores the tensor {tensor.name!r} as {tensor.dtype}, but the checkpoint lacks its "
                f"scales in the format {name}, which {config} names."
            )
        for pattern, other in _TENSORS:
            if pattern.fullmatch(tensor.name):
                raise UnsupportedDtypeError(
                    f"{tensor.file} holds the tensor {tensor.name!r}, as {other} weights do, but it belongs to no "
                    f"matrix in the format {name}, which {config} names."
                )


def is_coded(tensor: StoredTensor) -> bool:
    """Whether a tensor's own dtype shows that it holds codes."""
    if _CODES.fullmatch(tensor.dtype):
        return True
    return tensor.dtype in _BYTES and len(tensor.shape) >= 2 and tensor.name.endswith((".weight", "_proj"))


def check_scales(matrix: CodedTensor, where: str) -> None:
    """Refuses a matrix with a scale that is infinite or not a number: the model would compute nothing with it.

    Args:
        matrix: The matrix; only its scales are read.
        where: File and tensor, for the message.

    Raises:
        UnsupportedDtypeError: There is one.
    """
    scales = decode_scales(matrix.coding.scale, matrix.scales, matrix.multiplier)
    if not torch.isfinite(scales).all():
        output, group = (int(index) for index in (~torch.isfinite(scales)).nonzero()[0])
        raise UnsupportedDtypeError(
            f"{where} has a scale of {float(scales[output, group])} at {[output, group]}: the checkpoint is damaged, "
            "so download or quantise it again."
        )


def check_groups(where: str, inputs: int, group: int) -> None:
    """Refuses groups that do not divide a matrix's inputs.

    Raises:
        ShapeError: They do not.
    """
    if group <= 0 or inputs % group:
        raise ShapeError(
            f"{where} has {inputs} inputs in groups of {group} by its shape and quantization_config: use the "
            "config.json that was published with it, or a checkpoint with a group_size that divides the inputs."
        )
