"""What a published format of 8- or 4-bit weights is: one class per format, each in a file of its own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from fiddler.checkpoint.formats.repacked import RepackedStored
from fiddler.checkpoint.formats.stored import CodedStored
from fiddler.checkpoint.safetensors_index import StoredTensor


class WeightFormat(ABC):
    """How a published format names the planes of a coded tensor, and what they mean together."""

    name: str
    """As logs, metrics and the dry run show it."""
    adds_biases: bool = False
    """Whether its tools add a bias of zero to every layer that they code."""

    @abstractmethod
    def split(self, name: str) -> tuple[str, str] | None:
        """The tensor that a plane belongs to, by the name of its plain form, and the plane's role; None for others.

        Roles are codes, scales, zeros, multiplier, and names of its own for `build`. A tensor that is called as its
        plain form would be holds the codes.
        """

    @abstractmethod
    def build(self, name: str, planes: Mapping[str, StoredTensor]) -> CodedStored | RepackedStored:
        """Puts a tensor's planes together.

        Raises:
            CheckpointError: A plane is missing, of a wrong shape, or in a form that is not supported.
        """
