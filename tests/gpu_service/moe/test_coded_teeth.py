"""A coded matrix that is read a little wrong is noticed: one of an expert's matrices is changed in the file.

What is compared are logits with those of the plain form, as in test_coded_routes.py.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support import reference
from tests.support.coded_layouts import GPT_OSS, Layout, write
from tests.support.routes import greedy, model_of
from tests.support.tampering import Tensors, edit_tensors

PROMPT, NUM_TOKENS = reference.PROMPTS[2], 4
LAYER, EXPERT = 1, 3

Change = Callable[[torch.Tensor], torch.Tensor]
SCALES = ("_scale_inv", "_scale", ".scale", "_scales", ".scales")
CODES = ("weight", "_packed", "_blocks", "qweight", "_proj")
ZEROS = ("_zero_point", "qzeros")


def _more(scales: torch.Tensor) -> torch.Tensor:
    """1 % more; the least that there is where a scale is a byte."""
    if scales.itemsize == 1:
        return (scales.view(torch.uint8) + 1).view(scales.dtype)
    return scales * 1.01


def _shifted(scales: torch.Tensor) -> torch.Tensor:
    """By one row."""
    return scales.view(torch.uint8).roll(1, 0).view(scales.dtype)


def _shifted_columns(scales: torch.Tensor) -> torch.Tensor:
    """By one output, where outputs are columns."""
    return scales.roll(1, 1)


def _swapped(codes: torch.Tensor) -> torch.Tensor:
    """The halves of each byte."""
    pairs = codes.contiguous().view(torch.uint8)
    return (pairs << 4 | pairs >> 4).view(codes.dtype)


def _beside(zeros: torch.Tensor) -> torch.Tensor:
    """Each 4-bit zero point off by one."""
    return zeros ^ 0x11111111


CHANGES: dict[str, tuple[tuple[str, ...], Change]] = {
    "scales 1 % off": (SCALES, _more),
    "multiplier 1 % off": (("_global_scale",), _more),
    "scales shifted by a row": (SCALES, _shifted),
    "scales shifted by an output": ((".scales",), _shifted_columns),
    "nibbles swapped": (CODES, _swapped),
    "zero points off by one": (ZEROS, _beside),
}
MORE, SHIFTED, NIBBLES, ZERO_POINTS = (
    "scales 1 % off",
    "scales shifted by a row",
    "nibbles swapped",
    "zero points off by one",
)
CASES: dict[tuple[Layout, str], tuple[str, ...]] = {
    ("separate", "fp8 small blocks"): (MORE, SHIFTED),
    ("fused", "fp8 block"): (MORE, SHIFTED),
    ("interleaved", "fp8 channel"): (MORE, SHIFTED),
    ("separate", "int8 packed"): (MORE, SHIFTED),
    ("fused", "int4 group 32"): (MORE, SHIFTED, NIBBLES),
    ("separate", "int4 group 32 asymmetric"): (ZERO_POINTS,),
    ("separate", "nvfp4"): (MORE, "multiplier 1 % off", NIBBLES),
    ("interleaved", GPT_OSS): (MORE, SHIFTED, NIBBLES),
    ("separate", "gptq"): (ZERO_POINTS, "scales shifted by an output"),
    ("separate", "awq"): (ZERO_POINTS, "scales shifted by an output"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices are so small that threads only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module", params=CASES, ids=": ".join)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, ...], Path, torch.Tensor]:
    """What is to be changed, the coded checkpoint, and transformers' logits."""
    directory = write(request.param[0], request.param[1], tmp_path_factory.mktemp("model"))
    _, logits = reference.generate(reference.load(directory.parent / "plain"), PROMPT, NUM_TOKENS)
    return CASES[request.param], directory, logits


def _is_noticed(directory: Path, expected: torch.Tensor) -> bool:
    _, logits = greedy(model_of(directory), PROMPT, NUM_TOKENS)
    return bool((logits - expected).abs().max() >= 1e-4)


def _change_one(directory: Path, suffixes: tuple[str, ...], change: Change) -> None:
    """Changes one plane of one expert: of down, or of gate and up where these are one tensor."""

    def edit(tensors: Tensors) -> Tensors:
        def is_meant(name: str) -> bool:
            matrix = f".layers.{LAYER}.mlp.experts."
            own = f"{matrix}{EXPERT}.down_proj"
            stem = own if own in name else f"{matrix}gate_up_proj"
            return stem in name and name.endswith(suffixes) and not name.endswith(("bias", "input_scale"))

        (name,) = {name for name in tensors if is_meant(name) and ("global" in name) == ("global" in suffixes[0])}
        if f".{EXPERT}.down_proj" in name:
            tensors[name] = change(tensors[name])
        else:
            tensors[name][EXPERT] = change(tensors[name][EXPERT])
        return tensors

    edit_tensors(directory, edit)


def test_a_matrix_that_is_read_wrong_is_noticed(
    written: tuple[tuple[str, ...], Path, torch.Tensor], tmp_path: Path
) -> None:
    changes, directory, expected = written
    assert not _is_noticed(directory, expected)
    for change in changes:
        changed = Path(shutil.copytree(directory, tmp_path / change.replace(" ", "_")))
        _change_one(changed, *CHANGES[change])
        assert _is_noticed(changed, expected), change
