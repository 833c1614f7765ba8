"""What people have instead of a checkpoint, and the beginning of the sentence that each of them gets."""

import json
from collections.abc import Callable
from pathlib import Path

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4932\n"


def written(directory: Path, **files: str) -> Path:
    """Files by name, with __ for a dot."""
    directory.mkdir()
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)
    return directory


def header(*names: str) -> str:
    text = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names})
    return len(text).to_bytes(8, "little").decode() + text


Make = Callable[[Path], Path]
MISTAKES: dict[str, tuple[Make, str]] = {
    "nothing": (lambda at: at, "{path} does not exist; give the directory that holds config.json"),
    "a model's name": (
        lambda at: Path("mistralai/Mixtral-8x7B-v0.1"),
        "{path} does not exist, and the Hugging Face cache (",
    ),
    "a file": (lambda at: written(at, a="") / "a", "{path} is not a directory; give the directory"),
    "a GGUF file": (
        lambda at: written(at, a__gguf="") / "a.gguf",
        "{path} is a GGUF file. GGUF is a format of llama.cpp, which is not read here: download the model's "
        "safetensors (`hf download ORG/NAME --local-dir DIR`)",
    ),
    "GGUF files": (lambda at: written(at, b__gguf="", a__gguf=""), "{path} holds a.gguf and no safetensors file. GGUF"),
    "an adapter": (
        lambda at: written(at, adapter_config__json='{"base_model_name_or_path": "org/base"}', a__safetensors=""),
        "{path} is an adapter for org/base, not a model: merge it into its base with peft",
    ),
    "an adapter of an unknown base": (lambda at: written(at, adapter_config__json="{"), "{path} is an adapter, not a"),
    "PyTorch's files": (
        lambda at: written(at, config__json="{}", pytorch_model__bin=""),
        "{path} holds no safetensors file, only pytorch_model.bin. Convert it: python -c 'from transformers import",
    ),
    "an empty directory": (lambda at: written(at), "{path} is empty: download the model's safetensors"),
    "a pointer of Git LFS": (
        lambda at: written(at, config__json="{}", model__safetensors=POINTER),
        "{path}/model.safetensors is a pointer of Git LFS, not the file itself: run `git lfs install && git lfs pull`",
    ),
    "a pointer for a shard": (
        lambda at: written(at, config__json="{}", **{"model-00001-of-00002__safetensors": POINTER}),
        "{path}/model-00001-of-00002.safetensors is a pointer of Git LFS",
    ),
    "a dense model": (
        lambda at: written(at, config__json='{"model_type": "llama"}', model__safetensors=header("layers.0.mlp")),
        "{path}/config.json describes no experts, and no tensor has the name of one: llama is dense. This server is",
    ),
    "a dense model in shards": (
        lambda at: written(
            at,
            config__json='{"model_type": "llama"}',
            model__safetensors__index__json='{"weight_map": {"layers.0.mlp": "a.safetensors"}}',
        ),
        "{path}/config.json describes no experts",
    ),
}
