"""Looks at a model's path before torch is imported, and says what a path that is no checkpoint is, and what helps.

It recognises what people have instead of a checkpoint: a model's name, a GGUF file, an adapter, PyTorch's .bin files, a
clone without its large files, a model without experts. Everything else is left to `Checkpoint.open`.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from fiddler.checkpoint.errors import CheckpointError, ConfigError, DirectoryError, UnknownNamingError
from fiddler.checkpoint.hub_cache import snapshot_of
from fiddler.checkpoint.json_file import read_json
from fiddler.checkpoint.moe_config import MoeConfig, mentions_experts
from fiddler.checkpoint.namings import NAMINGS
from fiddler.hub.names import DEMO, HubName, absence_of, locate

_CONFIG: Final = "config.json"
_ADAPTER: Final = "adapter_config.json"
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_POINTER: Final = b"version https://git-lfs"
_MAX_HEADER_BYTES: Final = 100_000_000
_GGUF: Final = "GGUF is a format of llama.cpp, which is not read here"
_DOWNLOAD: Final = "download the model's safetensors (`hf download ORG/NAME --local-dir DIR`) and give their directory"


def first_look(model: Path) -> None:
    """Refuses a path that is recognised as something else than a checkpoint of a model with experts.

    Args:
        model: What the user gave: a directory, a repository of the Hugging Face cache, or a model's name.

    Raises:
        CheckpointError: It is something else. The text says what, and what to do next.
        OSError: It may not be read.
    """
    directory = locate(model)
    if not directory.is_dir():
        raise DirectoryError(_no_directory(directory))
    directory = snapshot_of(directory)
    has_config = (directory / _CONFIG).exists()
    if problem := _pointer_in(directory) or _other_kind_in(directory, has_config=has_config):
        raise DirectoryError(problem)
    if has_config and (names := _tensor_names(directory)):
        _refuse_dense(directory, names)


def _no_directory(model: Path) -> str:
    if model.suffix == ".gguf":
        return f"{model} {'is' if model.exists() else 'would be'} a GGUF file. {_GGUF}: {_DOWNLOAD}."
    if os.path.lexists(model) and not model.exists():
        return f"{model} is a link that leads nowhere."
    if model.exists():
        return f"{model} is not a directory; give the directory that holds {_CONFIG} and the safetensors files."
    if str(model) == DEMO or HubName.parse(model):
        return absence_of(model)
    return (
        f"{model} does not exist; give the directory that holds {_CONFIG} and the safetensors files, or a model's name "
        "on the Hugging Face hub, ORG/NAME."
    )


def _pointer_in(directory: Path) -> str | None:
    """The sentence for a clone whose large files were not fetched; None if there is no pointer."""
    for path in (directory / _CONFIG, *sorted(directory.glob("model*.safetensors")), directory / "tokenizer.json"):
        if path.is_file() and _starts_with(path, _POINTER):
            return (
                f"{path} is a pointer of Git LFS, not the file itself: run `git lfs install && git lfs pull` in "
                f"{directory}."
            )
    return None


def _other_kind_in(directory: Path, *, has_config: bool) -> str | None:
    """The sentence for a directory of another kind; None if it is none that is known."""
    names = {entry.name for entry in os.scandir(directory)}
    if _SINGLE in names or _INDEX in names:
        return None if has_config or _ADAPTER not in names else _adapter(directory)
    if _ADAPTER in names:
        return _adapter(directory)
    if gguf := _first(names, ".gguf"):
        return f"{directory} holds {gguf} and no safetensors file. {_GGUF}: {_DOWNLOAD}."
    if _first(names, ".safetensors"):
        return None
    if binary := _first(names, ".bin", ".pt", ".pth"):
        return (
            f"{directory} holds no safetensors file, only {binary}. Convert it: python -c 'from transformers import "
            f'AutoModelForCausalLM as M; M.from_pretrained("{directory}", dtype="auto").save_pretrained('
            f"\"{directory}-safetensors\")', then copy the tokenizer's files there."
        )
    if not has_config and not names:
        return f"{directory} is empty: {_DOWNLOAD}."
    return None


def _adapter(directory: Path) -> str:
    try:
        base = read_json(directory / _ADAPTER, ConfigError).get("base_model_name_or_path")
    except CheckpointError:
        base = None
    of = f" for {base}" if isinstance(base, str) and base else ""
    return (
        f"{directory} is an adapter{of}, not a model: merge it into its base with peft (`merge_and_unload()`, then "
        "`save_pretrained(DIR)`) and serve DIR."
    )


def _refuse_dense(directory: Path, tensor_names: Iterable[str]) -> None:
    """Refuses a model if neither its configuration nor its tensors know an expert.

    Raises:
        ConfigError: See above.
    """
    if any("expert" in name for name in tensor_names):
        return
    config = read_json(directory / _CONFIG, ConfigError)
    if not _mentions_experts(config):
        raise ConfigError(dense(directory / _CONFIG, str(config.get("model_type"))))


def dense(config: Path, model_type: str) -> str:
    """The sentence for a model without experts."""
    return (
        f"{config} describes no experts, and no tensor has the name of one: {model_type} is dense. This server is for "
        "Mixture-of-Experts models; transformers, vLLM or llama.cpp serve dense ones."
    )


def _mentions_experts(value: Any) -> bool:
    """Whether any setting, at any depth, has to do with experts: first_look must not refuse what may be served."""
    if isinstance(value, list):
        return any(map(_mentions_experts, value))
    if not isinstance(value, dict):
        return False
    return any("expert" in key or "moe" in key.lower() or _mentions_experts(each) for key, each in value.items())


def _tensor_names(directory: Path) -> list[str]:
    """The names of the tensors; empty if they cannot be read, which `Checkpoint.open` reports."""
    try:
        if (directory / _SINGLE).is_file():
            return list(_header(directory / _SINGLE))
        content = json.loads((directory / _INDEX).read_bytes())
        return list(content["weight_map"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(num_bytes)) if num_bytes <= _MAX_HEADER_BYTES else None
    return header if isinstance(header, dict) else {}


def _starts_with(path: Path, beginning: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


def _first(names: Iterable[str], *suffixes: str) -> str | None:
    return min((name for name in names if name.endswith(suffixes)), default=None)


def no_experts(config: dict[str, Any], moe: MoeConfig, tensor_names: list[str]) -> CheckpointError:
    """The error for a checkpoint in which no naming finds experts."""
    suspects = sorted(name for name in tensor_names if "expert" in name)
    if not suspects and not mentions_experts(config):
        return ConfigError(dense(moe.path, moe.model_type))
    found = ", ".join(suspects[:3]) or "no tensor with 'expert' in its name"
    known = "; ".join(naming.description for naming in NAMINGS)
    return UnknownNamingError(
        f"{moe.path} describes a {moe.model_type} model whose experts have unknown names: found {found}; known names "
        f"are {known}."
    )
