"""A Hugging Face checkpoint: where each expert's matrices are stored, and zero-copy views of them.

This package loads no models and does not import transformers, so that the CPU expert service starts fast.
"""

from fiddler.checkpoint.checkpoint import Checkpoint
from fiddler.checkpoint.errors import ChangedFileError, CheckpointError
from fiddler.checkpoint.namings import NAMINGS
from fiddler.checkpoint.views import CheckpointLayer, Expert, WeightView

__all__ = ["NAMINGS", "ChangedFileError", "Checkpoint", "CheckpointError", "CheckpointLayer", "Expert", "WeightView"]
