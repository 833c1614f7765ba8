"""Random coded matrices."""

import torch

from fiddler.coding import Code, CodedTensor, Coding, ScaleKind


def random_coded(
    coding: Coding, outputs: int, inputs: int, multiplier: float, generator: torch.Generator
) -> CodedTensor:
    """[outputs, inputs] whose codes are all numbers."""
    codes = torch.randint(0, 256, (outputs, coding.row_bytes(inputs)), generator=generator, dtype=torch.uint8)
    if coding.code is Code.E4M3:
        codes[(codes & 0x7F) == 0x7F] = 0x38  # not a number, which has a test of its own
    groups = (-(-outputs // coding.group_outputs), coding.num_groups(inputs))
    zeros = None
    if coding.has_zeros:
        zeros = torch.randint(0, 1 << coding.code.bits, groups, generator=generator, dtype=torch.uint8)
    return CodedTensor(coding, (outputs, inputs), codes, _scales(coding.scale, groups, generator), zeros, multiplier)


def _scales(kind: ScaleKind, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    if kind is ScaleKind.E8M0:
        return torch.randint(118, 124, shape, generator=generator, dtype=torch.uint8)
    values = torch.rand(shape, generator=generator) * 0.02 + 0.01
    if kind is ScaleKind.E4M3:
        return (values * 100).to(torch.float8_e4m3fn).view(torch.uint8)
    return values.to(kind.dtype)
