"""What can go wrong with a conversion. Every message is a sentence for the user who asked for it."""

from fiddler.errors import UserError


class ConversionError(UserError):
    """The checkpoint cannot be converted, or its result cannot be written. The message names file or tensor."""


class SpaceError(ConversionError):
    """The disk has too little space."""


class UnwritableError(ConversionError):
    """The result's directory cannot be written to."""


class StoppedError(Exception):
    """The conversion was asked to stop. What is written is continued the next time."""
