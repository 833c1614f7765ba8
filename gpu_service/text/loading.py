"""Loads the tokenizer of a checkpoint from whichever files it has, and says what helps if it has not enough of them."""

import re
from pathlib import Path
from typing import Any

import structlog
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from fiddler.checkpoint.errors import ConfigError
from fiddler.checkpoint.json_file import read_json
from fiddler.checkpoint.moe_config import model_type_of
from fiddler.checkpoint.tokenizer_files import CONFIG, FAST, HELP, NONE, VOCABULARIES, models_in
from gpu_service.errors import ModelError
from gpu_service.models.registry import configuration_of
from gpu_service.text.vocabularies import openmoe, sentencepiece_model, tiktoken_model

_log = structlog.get_logger(__name__)
_OPENMOE = "openmoe"
_POINTER = b"version https://git-lfs"
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a checkpoint.

    Raises:
        ModelError: The files are damaged, or not enough. The text names the file and what helps.
        ConfigError: config.json cannot be read.
    """
    model_type = _model_type(directory)
    if not (directory / FAST).is_file() and tiktoken_model.is_kimi(directory):
        return tiktoken_model.load(directory)
    if (path := _only_tiktoken(directory)) is not None:
        # transformers, where the package tiktoken is installed, would divide texts in a way of its own
        raise ModelError(f"{directory}: cannot read the tokenizer: {_lack_of_tiktoken(path)}")
    try:
        tokenizer = _load(directory, model_type)
    except Exception as error:  # bad files raise many kinds of exceptions
        lack = None if model_type == _OPENMOE else _lack_of(directory)
        text = lack or " ".join(str(error).split())  # some span many lines
        raise ModelError(f"{directory}: cannot read the tokenizer: {text}") from error
    _switch_clean_up_off(tokenizer, directory)
    return tokenizer


def _model_type(directory: Path) -> str | None:
    path = directory / "config.json"
    return model_type_of(read_json(path, ConfigError)) if path.is_file() else None


def _load(directory: Path, model_type: str | None) -> PreTrainedTokenizerBase:
    if model_type == _OPENMOE:
        return openmoe.load(directory)
    # transformers does not know the model type; the tokenizer's own files are enough
    more = {"config": PreTrainedConfig()} if configuration_of(model_type or "") is not None else {}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, **more
    )
    if not (directory / FAST).is_file():
        sentencepiece_model.complete(tokenizer, directory)
    return tokenizer


def _lack_of(directory: Path) -> str | None:
    """What a directory lacks whose tokenizer cannot be read, if that is known; transformers advises on packages."""
    if (directory / FAST).is_file():
        return _if_pointer(directory / FAST)
    models = models_in(directory)
    for path in models:
        if text := _if_pointer(path):
            return text
        if _is_tiktoken(path):
            return _lack_of_tiktoken(path)
    if code := _code_of(directory):
        return f"{CONFIG} names code ({code}), which is never run; {HELP}, and remove auto_map from {CONFIG}"
    if models:
        return f"{models[0].name} is not a sentencepiece model; copy it again, or {HELP}"
    found = [name for name in VOCABULARIES if (directory / name).is_file()]
    if not found:
        return NONE
    return f"{' and '.join(found)} cannot be read as the vocabulary of this family; {HELP}"


def _only_tiktoken(directory: Path) -> Path | None:
    """The tiktoken vocabulary of a directory that has no other."""
    models = models_in(directory)
    has_others = any((directory / name).is_file() for name in (FAST, *VOCABULARIES))
    return models[0] if models and not has_others and all(map(_is_tiktoken, models)) else None


def _lack_of_tiktoken(path: Path) -> str:
    return f"{path.name} is a tiktoken vocabulary, which does not say how texts are divided; {HELP}"


def _if_pointer(path: Path) -> str | None:
    with path.open("rb") as file:
        is_pointer = file.read(len(_POINTER)) == _POINTER
    return f"{path.name} is a pointer of Git LFS, not the file itself; run `git lfs pull`" if is_pointer else None


def _is_tiktoken(path: Path) -> bool:
    with path.open("rb") as file:
        return _TIKTOKEN_LINE.fullmatch(file.readline(10_000)) is not None


def _code_of(directory: Path) -> str | None:
    """The code that tokenizer_config.json names."""
    if not (directory / CONFIG).is_file():
        return None
    auto_map = read_json(directory / CONFIG, ConfigError).get("auto_map")
    classes = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    names = classes if isinstance(classes, list) else [classes]
    return next((name for name in names if isinstance(name, str)), None)


def _switch_clean_up_off(tokenizer: Any, directory: Path) -> None:
    """Switches off what would rewrite text that was sent already: "do" and " n't" to "don't"."""
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    is_applied = type(model).__name__ != "BPE" or getattr(tokenizer, forced, False)  # as transformers decides
    if getattr(tokenizer, "clean_up_tokenization_spaces", False) and is_applied:
        _log.warning("setting not applied", file=str(directory / CONFIG), setting="clean_up_tokenization_spaces")
    tokenizer.clean_up_tokenization_spaces = False
