"""What can be wrong with a checkpoint, as one tree of errors. Every message is a sentence for the user who passed it.

CheckpointError
├── DirectoryError         the directory, or a file that it must hold, is missing or cannot be read
├── ConfigError            config.json is unreadable, or describes no experts
├── FileFormatError        a safetensors file or its index is damaged
├── UnknownNamingError     the experts' tensors have names that no row of the table matches
├── MissingTensorError     an expert's tensor, or a whole expert, is missing
├── ShapeError             a tensor's shape fits neither its neighbours nor config.json
├── UnsupportedDtypeError  the experts are in a format that is not supported
└── ChangedFileError       a file was changed while it was served
"""

from fiddler.errors import UserError


class CheckpointError(UserError):
    """The checkpoint cannot be served. The message names the file and, if it is about one, the tensor."""


class DirectoryError(CheckpointError):
    """The directory, or a file that it must hold, is missing or cannot be read."""


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
    """The experts are in a format that is not supported."""


class ChangedFileError(CheckpointError):
    """A file was changed while it was served."""
