"""`python -m fiddler.convert`, called as a function."""

import signal
from pathlib import Path

import pytest

from fiddler.checkpoint import Checkpoint
from fiddler.convert import __main__ as command
from fiddler.convert.conversion import Conversion
from tests.support import checkpoints, coded_layouts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("mixtral", tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=2)


def test_it_converts_and_says_what_became_of_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command.main([str(model), str(out), "--experts", "int8", "--dense", "int8"]) == 0
    assert Checkpoint.open(out).has_coded_dense
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"fiddler.convert: {out} is written: ")
    assert " KiB became " in line or " MiB became " in line
    assert command.main([str(model), str(out), "--experts", "int8", "--dense", "int8"]) == 0
    assert f"{out} is there already" in capsys.readouterr().err
    assert command.main([str(model), str(out), "--experts", "int4"]) == 1
    assert capsys.readouterr().err.startswith(f"fiddler.convert: {out} is not empty, and not the result")


def test_layers_that_are_not_in_groups_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = checkpoints.write("deepseek_v2", tmp_path / "model", num_hidden_layers=2, kv_lora_rank=32)
    assert command.main([str(model), str(tmp_path / "out"), "--experts", "int8", "--dense", "int4"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "int8" in line]
    assert told == [
        "fiddler.convert: written in int8, since groups of 32 do not divide their inputs: "
        "model.layers.0.self_attn.q_b_proj.weight and 1 more"
    ]


def test_a_mistake_is_one_line(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert command.main([str(model), str(tmp_path / "out"), "--experts", "int5"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"fiddler.convert: {tmp_path / 'none'} does not exist")
    assert "'int5' is not one of 'int8', 'int4'" in lines[1]
    assert len(lines) == 2


def test_a_quantised_source_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = coded_layouts.write("separate", "int8", tmp_path / "model")
    assert command.main([str(source), str(tmp_path / "out"), "--experts", "int4"]) == 0
    assert "warning: " in capsys.readouterr().err


def test_a_signal_ends_it_and_it_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, arguments = tmp_path / "out", [str(model), str(tmp_path / "out"), "--shard-bytes", "30000"]
    real = Conversion._write

    def interrupted(self: Conversion, *arguments: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Conversion, "_write", interrupted)
        assert command.main(arguments) == 130
    assert "stopped; the same command continues" in capsys.readouterr().err
    assert not out.exists()
    assert command.main(arguments) == 0
    assert out.is_dir()
