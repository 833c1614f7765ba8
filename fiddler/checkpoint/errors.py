"""What can be wrong with a checkpoint directory, as one tree; every message is a sentence for the person who passed it.

CheckpointError
├── DirectoryError         the directory, or a file it must hold, is not there
├── ConfigError            config.json is unreadable, or describes no experts
├── FileFormatError        a safetensors file or its index is damaged
├── UnknownNamingError     the experts' tensors have names that no row of the table matches
├── MissingTensorError     an expert's tensor, or a whole expert, is missing
├── ShapeError             a tensor's shape fits neither its neighbours nor config.json
└── UnsupportedDtypeError  the experts are in a format that nothing here computes
"""

from fiddler.errors import UserError


class CheckpointError(UserError):
    """The checkpoint cannot be served; `str()` names the file and, where there is one, the tensor."""


class DirectoryError(CheckpointError):
    """The directory, or a file it must hold, is not there."""


class ConfigError(CheckpointError):
    """config.json is unreadable, or describes no experts."""


class FileFormatError(CheckpointError):
    """A safetensors file or its index is damaged."""


class UnknownNamingError(CheckpointError):
    """The experts' tensors have names that no row of the table matches."""


class MissingTensorError(CheckpointError):
    """An expert's tensor, or a whole expert, is missing."""


class ShapeError(CheckpointError):
    """A tensor's shape fits neither its neighbours nor config.json."""


class UnsupportedDtypeError(CheckpointError):
    """The experts are in a format that nothing here computes."""
