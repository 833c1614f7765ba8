"""The pictures of docs/: drawn from the committed results, and the same bytes wherever they are drawn."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
DRAWN = {
    "kernel_scaling": "from benchmarks.kernel.plot import RESULTS, draw, read; text = draw(read(RESULTS.read_text()))",
    "orchestration": "from benchmarks.orchestration.plot import RESULTS, draw, read; text = draw(read(RESULTS)[0])",
    "routing": "from benchmarks.routing.plot import RESULTS, draw, read; text = draw(read(RESULTS.read_text()))",
}
NAMESPACE = "{http://www.w3.org/2000/svg}"


def _draw(name: str, settings: Path, seed: int) -> str:
    code = f"{DRAWN[name]}; import sys; sys.stdout.write(text)"
    environment = {**os.environ, "MPLCONFIGDIR": str(settings), "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True, timeout=240
    )
    return done.stdout.decode()


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_what_its_results_give_in_any_process_and_with_any_settings(name: str, tmp_path: Path) -> None:
    committed = (ROOT / "docs" / f"{name}.svg").read_text()
    (tmp_path / "matplotlibrc").write_text(
        "axes.facecolor: black\nfont.size: 20\nsvg.fonttype: path\nsvg.hashsalt: x\n"
    )
    assert _draw(name, tmp_path / "none", 1) == committed, (
        "run make kernel-plot orchestration-plot, or the routing's plot"
    )
    assert _draw(name, tmp_path, 2) == committed


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_legible_on_a_dark_page_and_names_its_axes(name: str) -> None:
    picture = ElementTree.parse(ROOT / "docs" / f"{name}.svg").getroot()
    first = next(picture.iter(f"{NAMESPACE}path"))
    _, _, width, height = (picture.get("viewBox") or "").split()
    assert "fill: #ffffff" in (first.get("style") or ""), "it has no white ground"
    assert first.get("d") == f"M 0 {height} L {width} {height} L {width} 0 L 0 0 z ", "the ground leaves something out"
    texts = [text.text or "" for text in picture.iter(f"{NAMESPACE}text")]
    units = {"kernel_scaling": ["rows", "time (ms)"], "routing": ["time since the load began (s)", "selections (%)"]}
    for unit in units.get(name, ["speed as a share of the bound (simulated, logarithmic)"]):
        assert unit in texts
    assert not re.search(r"<image|href=\"(?!#)|@import|<script", (ROOT / "docs" / f"{name}.svg").read_text())
