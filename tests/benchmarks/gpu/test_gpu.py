"""benchmarks.gpu runs from end to end without a GPU, goes on where it stopped, and reads a trace rightly."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer

from benchmarks.gpu import parts
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.setting import LARGE, Setting
from benchmarks.gpu.strategies import STRATEGIES
from benchmarks.gpu.trace import length, merged, overlap
from fiddler.checkpoint import Checkpoint
from tests.support import checkpoints
from tests.support.imitated_cuda.guard import why_impossible
from tests.support.imitated_routes import few_threads
from tests.support.routes import CPU


def _lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("imitate", [False, True], ids=["cpu", "imitated"])
def test_it_runs_from_end_to_end(imitate: bool, tmp_path: Path) -> None:
    if imitate and (reason := why_impossible()):
        pytest.skip(reason)
    out = tmp_path / "gpu.jsonl"
    with few_threads():
        main(out=out, device="cuda" if imitate else "cpu", imitate=imitate, checkpoint=tmp_path)
    lines = _lines(out)
    values = {str(line["name"]): line.get("value") for line in lines}
    for strategy in STRATEGIES:
        assert {f"gpu.model.{strategy}.{what}" for what in ("decode", "first_8", "first_12", "beams_2")} <= set(values)
    assert float(str(values["gpu.exactness.mixtral"])) < 1e-3
    assert next(line for line in lines if line["name"] == "gpu.environment")["real"] is False
    assert [name for name in values if name.endswith(".failed")] == []
    assert next(line for line in lines if line["name"] == "gpu.graphs.mixtral")["used"] is imitate
    with few_threads():
        main(out=out, device="cuda" if imitate else "cpu", imitate=imitate, checkpoint=tmp_path)
    assert len(_lines(out)) == len(lines) + 1, "a second run adds its machine and measures nothing again"


def test_a_run_without_time_begins_no_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(out=tmp_path / "gpu.jsonl", device="cpu", checkpoint=tmp_path, budget_seconds=-1)
    assert len(_lines(tmp_path / "gpu.jsonl")) == 1
    assert "run it again with the same --out" in capsys.readouterr().err


def test_a_file_of_another_card_is_not_continued(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    out.write_text('{"name": "gpu.environment", "card": "imitated device"}\n{"name": "gpu.environment.done"}\n')
    with pytest.raises(
        typer.BadParameter, match="it has results of imitated device, and this is no card; name another"
    ):
        main(out=out, device="cpu", checkpoint=tmp_path)


@pytest.mark.parametrize("difference", [math.inf, math.nan, 0.01])
def test_a_family_that_differs_fails_its_part_and_is_tried_again(
    difference: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_difference", lambda *_: (difference, False))
    out = tmp_path / "gpu.jsonl"
    done = ["environment", "copy", "tests", "trace", *(f"model.{name}" for name in STRATEGIES)]
    out.write_text("".join(f'{{"name": "gpu.{part}.done"}}\n' for part in done))
    for _ in range(2):
        with pytest.raises(typer.Exit):
            main(out=out, device="cpu", checkpoint=tmp_path)
    failed = [line for line in _lines(out) if line["name"] == "gpu.exactness.mixtral.failed"]
    assert ["mixtral" in str(line["error"]) for line in failed] == [True, True]


def test_a_disk_without_room_for_the_model_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 * 2**30))
    setting = Setting(CPU, LARGE, tmp_path / "new", is_real=True)
    with pytest.raises(typer.BadParameter, match=r"takes 22\.\d+ GiB, and 10 GiB are free"):
        setting.check_disk()
    Setting(CPU, LARGE.with_layers(2), tmp_path, is_real=True).check_disk()


def test_an_expert_service_that_ends_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.setting._MAX_MESSAGE_BYTES", -1)
    setting = Setting(CPU, LARGE, tmp_path, is_real=True)
    checkpoint = Checkpoint.open(checkpoints.write("mixtral", tmp_path))
    with (
        pytest.raises(RuntimeError, match=r"the CPU expert service ended with status \d+: .*--max-message-bytes"),
        setting.experts(checkpoint, torch.float32),
    ):
        pass


def test_without_a_gpu_it_says_what_runs_without_one(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="--imitate or --device cpu"):
        main(out=tmp_path / "gpu.jsonl", checkpoint=tmp_path)


def test_overlap_is_measured_once() -> None:
    kernels = merged([(0, 2), (1, 3), (5, 6)])
    assert kernels == [(0, 3), (5, 6)]
    assert length(overlap(kernels, merged([(2, 5.5)]))) == 1.5
