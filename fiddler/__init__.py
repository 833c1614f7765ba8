"""What the GPU service, the CPU expert service and their clients must agree on, and what both services load."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fiddler-moe")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0.0.0"

PROTOCOL_VERSION = 1
"""The version of protos/fiddler/v1/experts.proto that both services speak. Raised when a change breaks a caller."""
