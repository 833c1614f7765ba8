"""Every row of docs/formats.md: what is said to load loads, and each matrix is what its codes stand for."""

import re
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.coding import CodedTensor, dequantize
from tests.support.damaged_coded import CASES
from tests.support.published_formats import PUBLISHED, write

PAGE = Path(__file__).parents[4] / "docs/formats.md"


def _rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    _, _, text = PAGE.read_text().partition(f"\n## {heading}\n")
    section = text.partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("kind", PUBLISHED)
def test_it_loads_as_it_is_published(kind: str, tmp_path: Path) -> None:
    directory = write(kind, tmp_path)
    checkpoint, plain = Checkpoint.open(directory), Checkpoint.open(tmp_path / "plain")
    assert checkpoint.is_coded
    assert checkpoint.is_repacked is not PUBLISHED[kind].in_place
    assert [layer.num_experts for layer in checkpoint.layers] == [layer.num_experts for layer in plain.layers]
    for layer, other in zip(checkpoint.layers, plain.layers, strict=True):
        for expert, due in zip(layer.experts, other.experts, strict=True):
            assert expert.views.keys() == due.views.keys()
            for name, view in expert.views.items():
                if name.endswith("_bias"):
                    continue
                matrix = checkpoint.matrix(view)
                assert isinstance(matrix, CodedTensor)
                assert torch.equal(dequantize(matrix), plain.tensor(due.views[name]))
                assert sum(view.plane_bytes) == matrix.nbytes


def test_the_page_has_these_rows() -> None:
    due = [
        [kind, row.models, f"`{row.settings['quant_method']}`", row.stored, "in place" if row.in_place else "repacked"]
        for kind, row in PUBLISHED.items()
    ]
    assert _rows("What loads") == due


def test_what_the_page_says_is_refused_is_refused_with_these_words() -> None:
    rows = _rows("What is refused")
    assert len(rows) >= 15
    for what, names, words, instead in rows:
        assert instead, what
        for name in names.split(", "):
            assert re.fullmatch(r"`.*`", words)
            assert words.strip("`") in CASES[name].fragments
