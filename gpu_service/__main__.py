"""`python -m gpu_service`: reads the settings, serves, and reports a user's mistake in one line."""

import asyncio
import json
import signal
from collections.abc import Sequence

from fiddler import process
from fiddler.errors import UserError, is_user_error

process.prepare()

# grpc is imported after the process is prepared
from fiddler import logs  # noqa: E402
from fiddler.checkpoint.tokenizer_files import check_tokenizer  # noqa: E402
from fiddler.running import early_checks  # noqa: E402
from gpu_service.api.auth import Access  # noqa: E402
from gpu_service.errors import UnavailableError  # noqa: E402
from gpu_service.settings import Settings  # noqa: E402
from gpu_service.startup import background  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the service.

    Args:
        arguments: The flags; None takes the process's.

    Returns:
        The exit status: 0 after a signal, 1 if it could not start or go on.
    """
    settings = Settings.load(arguments)
    try:
        access = Access.read(settings)
        early_checks.check(settings, listens=not settings.dry_run)
        check_tokenizer(settings.model)
    except (UserError, OSError) as error:
        if not is_user_error(error):
            raise
        return _refuse(error)
    # imported here, so that --help and a wrong flag do not wait for torch and transformers
    from fiddler.convert.errors import StoppedError
    from gpu_service import server
    from gpu_service.models import families
    from gpu_service.startup import conversion, dry_run

    logs.configure(settings.log_level, settings.log_format)
    try:
        if settings.dry_run:
            is_json = settings.dry_run_format == "json"
            print(json.dumps(dry_run.figures(settings)) if is_json else "\n".join(dry_run.report(settings)))
        else:
            asyncio.run(server.run(conversion.converted(settings), access))
    except StoppedError:
        return 0
    except Exception as error:
        if refusal := families.refusal(settings.model):
            return _refuse(refusal)
        if is_user_error(error) or isinstance(error, UnavailableError):
            return _refuse(error)
        raise
    finally:
        # the event loop no longer handles signals, and a repeated one has nothing left to stop
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    return 0


def _refuse(why: Exception | str) -> int:
    logs.say(f"{Settings.program}: {why}")
    return 1


if __name__ == "__main__":
    background.leave(main())
