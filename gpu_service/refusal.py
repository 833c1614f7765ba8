"""Why a model directory cannot be served, in one sentence: what the table of families says, else what went wrong."""

from pathlib import Path

from fiddler.checkpoint_errors import ConfigError
from fiddler.moe_config import model_type_of
from fiddler.safetensors_index import read_json
from gpu_service.families import REFUSED


def reason(directory: Path, error: Exception) -> str:
    """The sentence for an error at the start.

    A family that is refused fails somewhere, in words about tensors or classes; the table knows what lies behind it.
    """
    path = directory / "config.json"
    try:
        model_type = model_type_of(read_json(path, ConfigError))
    except ConfigError:
        return str(error)
    if model_type not in REFUSED:
        return str(error)
    return f"{path}: model_type: {model_type} is refused: {REFUSED[model_type]}"
