"""A Hugging Face checkpoint: where each expert's matrices are stored, and zero-copy views of them.

This package loads no models and does not import transformers, so that the CPU expert service starts fast.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fiddler.checkpoint.checkpoint import Checkpoint
    from fiddler.checkpoint.errors import ChangedFileError, CheckpointError
    from fiddler.checkpoint.namings import NAMINGS
    from fiddler.checkpoint.views import CheckpointLayer, Expert, WeightView

__all__ = ["NAMINGS", "ChangedFileError", "Checkpoint", "CheckpointError", "CheckpointLayer", "Expert", "WeightView"]

# Importing torch takes seconds, and first_look.py reports most mistakes without it.
_LAZY = {
    "NAMINGS": "fiddler.checkpoint.namings",
    "ChangedFileError": "fiddler.checkpoint.errors",
    "Checkpoint": "fiddler.checkpoint.checkpoint",
    "CheckpointError": "fiddler.checkpoint.errors",
    "CheckpointLayer": "fiddler.checkpoint.views",
    "Expert": "fiddler.checkpoint.views",
    "WeightView": "fiddler.checkpoint.views",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
