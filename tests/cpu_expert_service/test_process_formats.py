"""Coded checkpoints that are not served are refused by the process itself: one line, status 1, no socket.

tests/fiddler/checkpoint/formats has all cases; these are one of each kind.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import coded, damaged_coded
from tests.support.checkpoints import write
from tests.support.warm_processes import WarmProcess

KINDS = (
    *("bitsandbytes", "EXL2", "EXL3", "HQQ", "torchao", "Quark", "a method of the future", "no method"),
    *("GPTQ with 2 bits", "GPTQ with 3 bits", "GPTQ with 8 bits in config.json"),
    "GPTQ in the order of activations by its tensors",
    *("AWQ gemv", "FP8 without scales", "FP8 with too few scales", "FP8 that config.json does not name"),
    *("FP8 with a scale that is not a number", "INT4 with other groups", "codes of unknown names"),
    *("MLX", "INT4 with zero points of another shape", "AutoRound in an unknown packing"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """Copies a checkpoint in a row of `coded.FORMATS`, or a plain one, to a directory. Each is written once."""
    root = tmp_path_factory.mktemp("formats")
    made: dict[str, Path] = {}

    def copy(name: str, to: Path) -> Path:
        if name not in made:
            number = len(made)
            plain = write("qwen3_moe", root / f"plain{number}", hidden_size=64, moe_intermediate_size=96)
            made[name] = (
                coded.rewrite(plain, root / f"coded{number}", name, lambda tensor: "_proj." in tensor)
                if name
                else plain
            )
        return Path(shutil.copytree(made[name], to))

    return copy


@pytest.mark.parametrize("name", KINDS)
def test_the_process_refuses_it_in_one_line(name: str, written: Callable[[str, Path], Path], tmp_path: Path) -> None:
    case = damaged_coded.CASES[name]
    directory = written(case.written, tmp_path / "model")
    case.damage(directory)
    errors, socket = tmp_path / "errors", tmp_path / "experts.sock"
    arguments = ["cpu_expert_service", "--model", str(directory), "--listen", f"unix:{socket}", "--metrics-port", "0"]
    with errors.open("wb") as file:
        assert WarmProcess(arguments, stderr=file).wait(60) == 1
    *log, line = errors.read_text().splitlines()
    assert line.startswith("cpu_expert_service: ")
    assert str(directory) in line
    for fragment in case.fragments:
        assert fragment in line
    assert all(each.startswith("{") for each in log)  # what was logged before; no traceback
    assert bool(log) == case.is_read
    assert not socket.exists()
