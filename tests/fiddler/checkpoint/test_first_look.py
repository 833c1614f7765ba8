"""What a path is that is no checkpoint: said without torch, with what to do next."""

import subprocess
import sys
from pathlib import Path

import pytest

from fiddler.checkpoint.errors import CheckpointError
from fiddler.checkpoint.first_look import first_look
from tests.support.mistaken_paths import MISTAKES, header, written
from tests.support.pairs import DEMO


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_no_checkpoint_is_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, text = MISTAKES[name]
    path = make(tmp_path / "model")
    with pytest.raises(CheckpointError) as error:
        first_look(path)
    assert str(error.value).startswith(text.format(path=path))
    assert str(error.value).endswith(".")


MAYBE = {
    "experts in a tensor's name": {"config__json": "{}", "model__safetensors": header("layers.0.experts.0")},
    "experts in a setting": {"config__json": '{"text": {"moe_layers": 2}}', "model__safetensors": header("a")},
    "other weights": {"config__json": "{}", "consolidated__safetensors": ""},
    "a damaged index": {"config__json": "{}", "model__safetensors__index__json": "["},
    "a damaged file": {"config__json": "{}", "model__safetensors": "no header at all"},
    "no weights": {"config__json": "{}"},
    "files of an adapter beside a model": {
        "config__json": "{}",
        "adapter_config__json": "{}",
        "model__safetensors": "",
    },
}


@pytest.mark.parametrize("name", MAYBE)
def test_what_may_be_a_checkpoint_passes(name: str, tmp_path: Path) -> None:
    first_look(written(tmp_path / "model", **MAYBE[name]))


def test_a_checkpoint_passes_also_as_a_repository_of_the_cache(tmp_path: Path) -> None:
    first_look(DEMO)
    snapshots = tmp_path / "models--org--demo" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / "abc").symlink_to(DEMO)
    first_look(snapshots.parent)


def test_no_torch_is_imported_for_it() -> None:
    code = "import sys, fiddler.running.early_checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
