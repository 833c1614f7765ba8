"""Every way in which the service can fail, as two trees: the user's errors and a caller's.

    fiddler.errors.UserError     the user can put it right: one line at the start, exit status 1
      fiddler.checkpoint.CheckpointError
                                 the checkpoint's files are missing, damaged, or of an unknown layout
      fiddler.expert_math.UnknownActivationError
                                 the experts have an activation that nothing here computes
      fiddler.access.tls.TlsFileError   a certificate or a key cannot be used
      ModelError                 the checkpoint cannot be run
      FlagError                  a flag asks for what is not there
      PlacementError             the placement policy does not exist, or lacks what it needs
      PopularityError            the popularity file cannot be used
      CostsFileError             the costs file cannot be used
      PromptsError               the profile command's prompts cannot be used
    CallError                    a call fails with it; api/statuses.py maps it onto gRPC's statuses
      RequestError               a field of the request is wrong; repeating the request is useless
        ContextLengthError       the request is longer than the context
        NeverFitsError           the request needs more than there is
        DuplicateIdError         another request under way has the same id
      QueueFullError             too many requests wait; repeat the request later
        OverloadedError          the request could not be computed by its deadline
      SlowReaderError            the caller does not read what it asked for
      UnavailableError           the service cannot compute; repeat the request later
        ExpertServiceError       the CPU expert service failed
          HandshakeError         the CPU expert service serves another checkpoint or dtype
        EngineStoppedError       the engine no longer computes
      ConstraintError            the output cannot follow the request's constraint
      NonFiniteError             the model computed a number that is not finite
      ComputationError           anything else, of which the caller learns nothing more

Any other exception is a fault of this program or of a library: it keeps its traceback. A library's panic, which is no
Exception, becomes a PanicError.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from fiddler.errors import UserError


class ModelError(UserError):
    """The checkpoint cannot be run. The text says what is missing."""


class FlagError(UserError):
    """A flag asks for what is not there, or does not fit another flag. The text begins with the flag."""


class PlacementError(UserError):
    """The placement policy does not exist, or lacks what it needs."""


class PopularityError(UserError):
    """The popularity file cannot be used. The text names the file and the field."""


class CostsFileError(UserError):
    """The costs file cannot be used. The text names the file and the field."""


class PromptsError(UserError):
    """The file of prompts cannot be used. The text names the file and the line."""


class CallError(Exception):
    """A call fails. The text is for the caller.

    Attributes:
        code: The name in google.rpc.Code that a front, the metrics and the log report.
    """

    code: ClassVar[str]


class RequestError(CallError):
    """A field of a request is wrong.

    Attributes:
        field: The field's path in the request, such as "sampling.top_p".
        reason: A name for the mistake by which programs tell it from others; empty if it has none.
    """

    code = "INVALID_ARGUMENT"
    reason = ""

    def __init__(self, field: str, text: str) -> None:
        """A wrong field.

        Args:
            field: See above.
            text: What the field must be, without its name, such as "must be at least 1, got 0".
        """
        super().__init__(text)
        self.field = field


class ContextLengthError(RequestError):
    """Prompt and output are longer than the context. A caller may shorten its conversation and ask again."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class NeverFitsError(RequestError):
    """The request needs more rows or memory than there is. The text says how much."""


class DuplicateIdError(RequestError):
    """Another request under way has the same id."""

    code = "ALREADY_EXISTS"

    def __init__(self, text: str) -> None:
        super().__init__("request_id", text)


class QueueFullError(CallError):
    """As many requests wait as may.

    Attributes:
        retry_seconds: When to repeat the request. Whenever a request ends, there is room for another.
    """

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, text: str, retry_seconds: float = 1.0) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


class OverloadedError(QueueFullError):
    """So many requests wait that this one could not be computed by its deadline."""


class SlowReaderError(CallError):
    """Too many events of a request were left unread."""

    code = "RESOURCE_EXHAUSTED"


class UnavailableError(CallError):
    """The service cannot compute. The same request may succeed later."""

    code = "UNAVAILABLE"


class ExpertServiceError(UnavailableError):
    """The CPU expert service did not answer, or answered with an error."""


class HandshakeError(ExpertServiceError):
    """The CPU expert service serves another checkpoint or dtype, or may not be the service that was meant."""


class EngineStoppedError(UnavailableError):
    """The engine no longer computes."""


class ConstraintError(CallError):
    """The output cannot follow the constraint, which is too complex or asks for what the model has no tokens for."""

    code = "INVALID_ARGUMENT"


class NonFiniteError(CallError):
    """The model computed a number that is not finite."""

    code = "INTERNAL"


class ComputationError(CallError):
    """An error that a caller should not learn about, since its text may hold anything."""

    code = "INTERNAL"

    def __init__(self) -> None:
        super().__init__("the computation failed; the service's log says why")


class PanicError(Exception):
    """A library raised what is no Exception. The text is the library's."""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises a PanicError for what is no Exception, so that it ends what a request asked for and nothing else.

    Libraries written in Rust panic so. What ends a process, a task or a generator passes.

    Raises:
        PanicError: See above.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError):
        raise
    except BaseException as panic:
        raise PanicError(f"{type(panic).__name__}: {panic}") from panic


def for_caller(error: Exception) -> CallError:
    """The error itself if a caller may know it, else a ComputationError."""
    return error if isinstance(error, CallError) else ComputationError()
