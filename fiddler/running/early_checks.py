"""What a service refuses before it imports torch, which takes seconds: a path that is no checkpoint, a port in use."""

from fiddler.checkpoint.first_look import first_look
from fiddler.settings import ServiceSettings
from fiddler.transport.ports import check_free


def check(settings: ServiceSettings, *, listens: bool = True) -> None:
    """Refuses what a start would refuse some seconds later.

    Args:
        settings: The service's.
        listens: Whether it will listen; a dry run does not.

    Raises:
        UserError: The model is no checkpoint, or a port is in use. The text says what helps.
        OSError: The model may not be read.
    """
    first_look(settings.model)
    if listens:
        check_free("--listen", settings.listen)
        if settings.metrics_port:
            check_free("--metrics-port", f"{settings.metrics_host}:{settings.metrics_port}")
