"""Every way in which the service can fail, as one tree."""


class ModelError(Exception):
    """The checkpoint cannot be run. The text says what is missing."""


class ExpertServiceError(Exception):
    """The CPU expert service did not answer, or answered with an error."""


class HandshakeError(ExpertServiceError):
    """The CPU expert service serves something else than this service runs."""


class RequestError(Exception):
    """A field of a request is wrong. The text says what it must be, without the field's name."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field
        """The field's name in its message."""


class NeverFitsError(RequestError):
    """A request needs more rows or memory than there is. The text says how much."""


class QueueFullError(Exception):
    """As many requests wait as may."""


class EngineStoppedError(Exception):
    """The engine computes no more."""


class DuplicateIdError(ValueError):
    """A request of the same id is under way."""


class SlowReaderError(Exception):
    """The reader left too many events waiting."""


class NotFiniteError(Exception):
    """The model has computed something that is not a number."""
