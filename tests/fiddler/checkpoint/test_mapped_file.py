"""Views of a file in memory: where weights may start, what reading them in reports, and which memory they take."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fiddler.checkpoint import Checkpoint, WeightView
from tests.support import checkpoints
from tests.support.tampering import SINGLE_FILE, edit_tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("padding", range(8))
def test_weights_may_start_at_any_byte(mixtral: Path, dtype: torch.dtype, padding: int) -> None:
    edit_tensors(mixtral, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    content = (mixtral / SINGLE_FILE).read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + header_bytes] + b" " * padding
    (mixtral / SINGLE_FILE).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + header_bytes :])
    checkpoint = Checkpoint.open(mixtral)
    view = checkpoint.layers[1].experts[5].up
    weight = checkpoint.tensor(view)
    aligned = load_file(mixtral / SINGLE_FILE)[view.name]
    assert torch.equal(weight, aligned)
    for num_rows in (1, 7, 64):
        rows = torch.randn(num_rows, 64, dtype=dtype)
        exact = rows.double() @ aligned.double().T
        error = (torch.nn.functional.linear(rows, weight).double() - exact).abs().max()
        assert error <= 64 * torch.finfo(dtype).eps * exact.abs().max()


def test_spans_are_the_bytes_a_view_touches() -> None:
    view = WeightView(
        file=Path("file"), name="name", offset_bytes=100, shape=(3, 4), strides=(2, 6), dtype=torch.bfloat16
    )
    assert view.num_bytes == 24
    assert view.span_bytes == (100, 100 + 2 * (2 * 2 + 3 * 6 + 1))


@pytest.mark.parametrize("fused", [False, True])
def test_prefault_reports_every_expert_byte(mixtral: Path, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiddler.checkpoint.checkpoint._PREFAULT_CHUNK_BYTES", 100_000)
    if fused:
        checkpoints.fuse(mixtral, transposed=True)
    checkpoint = Checkpoint.open(mixtral)
    calls: list[tuple[int, int]] = []
    checkpoint.prefault(lambda done, total: calls.append((done, total)))
    assert len(calls) > 10
    assert calls == sorted(calls)
    assert {total for _, total in calls} == {checkpoint.expert_bytes}
    assert calls[-1][0] == checkpoint.expert_bytes


def kernel_version() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", platform.release())[:2])) if sys.platform == "linux" else (0,)


@pytest.mark.skipif(kernel_version() < (5, 14), reason="needs MADV_POPULATE_READ")
def test_prefault_asks_the_kernel_where_it_can(mixtral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a start that is not aligned to a page is the same errno as a kernel that does not know how
    monkeypatch.setattr("fiddler.checkpoint.mapped_file.MappedFile._touch", None)
    Checkpoint.open(mixtral).prefault()


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_prefault_works_on_a_kernel_without_populate(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiddler.checkpoint.mapped_file._MADV_POPULATE_READ", 9999)
    checkpoint = Checkpoint.open(large)
    before = resident_file_bytes()
    checkpoint.prefault()
    assert resident_file_bytes() - before > 0.9 * checkpoint.expert_bytes


MEASURE = """
import sys
from pathlib import Path
from fiddler.checkpoint import Checkpoint
from torch import mv, ones  # loaded before anything is measured

def resident(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))

mv(ones(2048, 2048), ones(2048))
checkpoint = Checkpoint.open(Path(sys.argv[1]))
anonymous, mapped = resident("RssAnon"), resident("RssFile")
checkpoint.prefault()
mapped = resident("RssFile") - mapped
views = [v for layer in checkpoint.layers for e in layer.experts for v in (e.gate, e.up, e.down)]
tensors = [checkpoint.tensor(view) for view in views]
assert all(float(tensor[::7].amax()) < 1e9 for tensor in tensors)
print(resident("RssAnon") - anonymous, mapped, checkpoint.expert_bytes)
assert "transformers" not in sys.modules
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_weights_cost_no_memory_of_our_own(large: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", MEASURE, str(large)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert finished.stderr == ""
    anonymous, mapped, expert_bytes = map(int, finished.stdout.split())
    assert expert_bytes > 150e6
    assert anonymous < 0.05 * expert_bytes
    assert mapped > 0.95 * expert_bytes


def test_views_share_the_mapping_and_outlive_it(mixtral: Path) -> None:
    checkpoint = Checkpoint.open(mixtral)
    view = checkpoint.layers[0].experts[0].up
    first, second = checkpoint.tensor(view), checkpoint.tensor(view)
    assert first.data_ptr() == second.data_ptr()
    checkpoint.close()
    assert torch.equal(first, load_file(mixtral / SINGLE_FILE)[view.name])
