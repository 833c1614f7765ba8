"""What a path is that is no checkpoint: said without torch, with what to do next."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fiddler.checkpoint.errors import CheckpointError
from fiddler.checkpoint.first_look import first_look
from tests.support.pairs import DEMO

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4932\n"


def _write(directory: Path, **files: str) -> Path:
    """Files by name, with __ for a dot."""
    directory.mkdir()
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)
    return directory


def _header(*names: str) -> str:
    text = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names})
    return len(text).to_bytes(8, "little").decode() + text


Make = Callable[[Path], Path]
MISTAKES: dict[str, tuple[Make, str]] = {
    "nothing": (lambda at: at, "{path} does not exist; give the directory that holds config.json"),
    "a model's name": (
        lambda at: Path("mistralai/Mixtral-8x7B-v0.1"),
        "{path} does not exist, and the Hugging Face cache (",
    ),
    "a file": (lambda at: _write(at, a="") / "a", "{path} is not a directory; give the directory"),
    "a GGUF file": (
        lambda at: _write(at, a__gguf="") / "a.gguf",
        "{path} is a GGUF file. GGUF is a format of llama.cpp, which is not read here: download the model's "
        "safetensors (`hf download ORG/NAME --local-dir DIR`)",
    ),
    "GGUF files": (lambda at: _write(at, b__gguf="", a__gguf=""), "{path} holds a.gguf and no safetensors file. GGUF"),
    "an adapter": (
        lambda at: _write(at, adapter_config__json='{"base_model_name_or_path": "org/base"}', a__safetensors=""),
        "{path} is an adapter for org/base, not a model: merge it into its base with peft",
    ),
    "an adapter of an unknown base": (lambda at: _write(at, adapter_config__json="{"), "{path} is an adapter, not a"),
    "PyTorch's files": (
        lambda at: _write(at, config__json="{}", pytorch_model__bin=""),
        "{path} holds no safetensors file, only pytorch_model.bin. Convert it: python -c 'from transformers import",
    ),
    "an empty directory": (lambda at: _write(at), "{path} is empty: download the model's safetensors"),
    "a pointer of Git LFS": (
        lambda at: _write(at, config__json="{}", model__safetensors=POINTER),
        "{path}/model.safetensors is a pointer of Git LFS, not the file itself: run `git lfs install && git lfs pull`",
    ),
    "a pointer for a shard": (
        lambda at: _write(at, config__json="{}", **{"model-00001-of-00002__safetensors": POINTER}),
        "{path}/model-00001-of-00002.safetensors is a pointer of Git LFS",
    ),
    "a dense model": (
        lambda at: _write(at, config__json='{"model_type": "llama"}', model__safetensors=_header("layers.0.mlp")),
        "{path}/config.json describes no experts, and no tensor has the name of one: llama is dense. This server is",
    ),
    "a dense model in shards": (
        lambda at: _write(
            at,
            config__json='{"model_type": "llama"}',
            model__safetensors__index__json='{"weight_map": {"layers.0.mlp": "a.safetensors"}}',
        ),
        "{path}/config.json describes no experts",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_no_checkpoint_is_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, text = MISTAKES[name]
    path = make(tmp_path / "model")
    with pytest.raises(CheckpointError) as error:
        first_look(path)
    assert str(error.value).startswith(text.format(path=path))
    assert str(error.value).endswith(".")


MAYBE = {
    "experts in a tensor's name": {"config__json": "{}", "model__safetensors": _header("layers.0.experts.0")},
    "experts in a setting": {"config__json": '{"text": {"moe_layers": 2}}', "model__safetensors": _header("a")},
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
    first_look(_write(tmp_path / "model", **MAYBE[name]))


def test_a_checkpoint_passes_also_as_a_repository_of_the_cache(tmp_path: Path) -> None:
    first_look(DEMO)
    snapshots = tmp_path / "models--org--demo" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / "abc").symlink_to(DEMO)
    first_look(snapshots.parent)


def test_no_torch_is_imported_for_it() -> None:
    code = "import sys, fiddler.running.early_checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
