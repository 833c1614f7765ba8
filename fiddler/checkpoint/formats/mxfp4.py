"""MXFP4 as gpt-oss is published: e2m1 codes with a power of two for every 32 inputs.

B_blocks U8 [experts, outputs, inputs / 32, 16] and B_scales U8 [experts, outputs, inputs / 32]; the plain form would be
called B. Outputs of gate and up alternate. transformers: integrations/mxfp4.py.
"""

import re
from collections.abc import Mapping
from typing import Final

from typing_extensions import override

from fiddler.checkpoint.errors import ShapeError
from fiddler.checkpoint.formats.scales import group_scales, required
from fiddler.checkpoint.formats.stored import CodedStored
from fiddler.checkpoint.formats.weight_format import WeightFormat
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Code, ScaleKind

GROUP: Final = 32
_PLANES = re.compile(r"(.*)_(blocks|scales)")


class Mxfp4(WeightFormat):
    """Checkpoints whose quant_method is mxfp4."""

    name = "mxfp4"

    @override
    def split(self, name: str) -> tuple[str, str] | None:
        match = _PLANES.fullmatch(name)
        return (match[1], "codes" if match[2] == "blocks" else "scales") if match else None

    @override
    def build(self, name: str, planes: Mapping[str, StoredTensor]) -> CodedStored:
        codes, scales = required(planes, "codes", name, "_blocks"), required(planes, "scales", name, "_scales")
        if len(codes.shape) < 3 or codes.shape[-1] != GROUP // 2 or codes.dtype != "U8":
            raise ShapeError(
                f"{codes.file} holds the tensor {codes.name!r}, {codes.dtype} of shape {list(codes.shape)}; MXFP4 "
                f"blocks are U8 [experts, outputs, inputs / {GROUP}, {GROUP // 2}]."
            )
        shape = (*codes.shape[:-2], codes.shape[-2] * GROUP)
        coding = group_scales(name, Code.E2M1, shape, scales, group=GROUP, kind=ScaleKind.E8M0)
        return CodedStored(name, coding, shape, codes, scales)
