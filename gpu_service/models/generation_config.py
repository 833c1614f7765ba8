"""Reads a checkpoint's generation_config.json, and the token ids in it and in config.json.

Both files are written by hand as well as by programs: -1 stands for "none", and an id may be of a larger vocabulary.
transformers never generates such a token and so ignores it; here it is left out. What is no number is a mistake.
"""

from pathlib import Path
from typing import Any, Final

import structlog
from transformers import GenerationConfig

from fiddler.checkpoint.errors import ConfigError
from fiddler.checkpoint.json_file import read_json
from gpu_service.errors import ModelError
from gpu_service.models.generation_fields import READ

_log = structlog.get_logger(__name__)
_FILE: Final = "generation_config.json"


def read_generation_config(directory: Path, config: Any) -> GenerationConfig:
    """The settings in generation_config.json, or in config.json if there is no such file.

    Args:
        directory: Of the checkpoint.
        config: transformers' configuration.

    Returns:
        The settings that are read here. eos_token_id is a list of ids in the vocabulary, those of config.json if
        generation_config.json has none.

    Raises:
        CheckpointError: The file is not a JSON object.
        ModelError: A token id is none.
    """
    path = directory / _FILE
    generation_config = _read(path) if path.is_file() else GenerationConfig.from_model_config(config)
    text_config = config.get_text_config(decoder=True)
    file, ids = path, generation_config.eos_token_id
    if ids is None or not path.is_file():
        file = directory / "config.json"
        ids = getattr(text_config, "eos_token_id", None) if ids is None else ids
    generation_config.eos_token_id = _known(file, "eos_token_id", ids, int(text_config.vocab_size))
    try:
        start_token_of(generation_config, config)
        forced_bos_token_of(generation_config, config)
    except ModelError as error:
        raise ModelError(f"{directory}: {error}") from None
    return generation_config


def start_token_of(generation_config: Any, config: Any) -> int | None:
    """What the decoder of a model begins with; None if the model has no encoder.

    Raises:
        ModelError: The model has an encoder, and the configurations do not give the token, or not one of the
            vocabulary.
    """
    if not getattr(config, "is_encoder_decoder", False):
        return None
    for file, settings, name in (
        (_FILE, generation_config, "decoder_start_token_id"),
        ("config.json", config, "decoder_start_token_id"),
        (_FILE, generation_config, "bos_token_id"),
    ):
        if (token_id := getattr(settings, name, None)) is not None:
            return _one(file, name, token_id, config.vocab_size)
    raise ModelError(
        "decoder_start_token_id: neither generation_config.json nor config.json says what output begins with"
    )


def forced_bos_token_of(generation_config: Any, config: Any) -> int | None:
    """The first token of a decoder's output if a request gives none; None if generation_config.json has no such token.

    Raises:
        ModelError: The token is not in the vocabulary.
    """
    token_id = generation_config.forced_bos_token_id if getattr(config, "is_encoder_decoder", False) else None
    return None if token_id is None else _one(_FILE, "forced_bos_token_id", token_id, config.vocab_size)


def _read(path: Path) -> GenerationConfig:
    settings = read_json(path, ConfigError)
    try:
        return GenerationConfig(**{name: value for name, value in settings.items() if name in READ})  # type: ignore[no-untyped-call]
    except Exception as error:  # it raises many types for values that are wrong
        raise ModelError(f"{path}: transformers cannot read it: {type(error).__name__}: {error}") from error


def _known(file: Path, name: str, value: Any, vocab_size: int) -> list[int]:
    """The ids of one or several tokens that are in the vocabulary."""
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for token_id in ids:
        if type(token_id) is not int:
            raise ModelError(f"{file}: {name}: must be a token id or a list of token ids, got {value!r}")
    left_out = [token_id for token_id in ids if not 0 <= token_id < vocab_size]
    if left_out:
        _log.warning("token ids left out", file=str(file), field=name, ids=left_out, vocab_size=vocab_size)
    return [token_id for token_id in ids if 0 <= token_id < vocab_size]


def _one(file: str, name: str, value: Any, vocab_size: int) -> int:
    if type(value) is not int or not 0 <= value < vocab_size:
        raise ModelError(f"{file}: {name}: must be 0 to {vocab_size - 1}, the vocabulary, got {value!r}")
    return value
