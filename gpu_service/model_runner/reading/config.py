"""Reads what config.json says, as transformers does."""

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fiddler.checkpoint.errors import ConfigError
from fiddler.checkpoint.json_file import read_json
from fiddler.checkpoint.moe_config import model_type_of
from gpu_service.errors import ModelError
from gpu_service.model_runner.reading.config_reads import Unread
from gpu_service.model_runner.reading.reporting import reported_as
from gpu_service.models.config_fields import FieldError
from gpu_service.models.registry import architecture_of, configuration_of


def logging_of_transformers() -> None:
    """Sends transformers' messages to this process's log instead of standard error."""
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def read_config(directory: Path) -> Any:
    """The model's configuration.

    Raises:
        CheckpointError: config.json is not a JSON object.
        ModelError: transformers has no such model, or a value is wrong, or the weights are quantised.
    """
    path = directory / "config.json"
    settings = read_json(path, ConfigError)
    model_type = model_type_of(settings) or ""
    own = configuration_of(model_type)
    if own is None and model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{path}: model_type: transformers {transformers.__version__} has no family {model_type!r}; a newer one may"
        )
    unread = Unread(settings, own or CONFIG_MAPPING[model_type])
    with reported_as(f"{path}: transformers {transformers.__version__} cannot read it", unread):
        if own is None:
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        else:
            config = _read_own(own, settings, path)
    try:
        architecture_of(config.model_type).complete_config(config, settings)
    except FieldError as error:
        raise ModelError(f"{path}: {error}") from None
    _forget_quantization(config)
    return config


def _forget_quantization(config: Any) -> None:
    """Removes quantization_config: weights are decoded here, and transformers would demand packages for its own way."""
    sections: tuple[Any, ...] = (config, getattr(config, "text_config", None))
    for section in sections:
        if hasattr(section, "quantization_config"):
            del section.quantization_config


def _read_own(configuration: Any, settings: dict[str, Any], path: Path) -> Any:
    try:
        return configuration.from_dict(settings)
    except FieldError as error:
        raise ModelError(f"{path}: {error}") from None
