"""`python -m gpu_service.profile`: reads the settings, counts, and reports a user's mistake in one line."""

import sys
from collections.abc import Sequence

from fiddler import process
from fiddler.command_line import FAILED, fail
from fiddler.errors import is_user_error

process.prepare()

# grpc is imported after the process is prepared
from gpu_service.errors import PromptsError, UnavailableError  # noqa: E402
from gpu_service.profile.prompts import read_prompts  # noqa: E402
from gpu_service.profile.settings import Settings  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the file.

    Args:
        arguments: The flags; None takes the process's.

    Returns:
        The exit status: 0, or 1 after a user's mistake or an interrupt.
    """
    settings = Settings.load(arguments)
    try:
        prompts = read_prompts(settings.prompts)
    except PromptsError as error:
        return _refuse(error)
    # imported here, so that --help, a wrong flag and a wrong file do not wait for torch and transformers
    from fiddler import logs
    from gpu_service.profile.count import count

    logs.configure(settings.log_level, settings.log_format)
    try:
        count(settings, prompts)
    except KeyboardInterrupt:
        return _refuse("interrupted; nothing was written")
    except Exception as error:
        if is_user_error(error) or isinstance(error, UnavailableError):
            return _refuse(error)
        raise
    print(f"{Settings.program}: the GPU service reads it with --popularity {settings.out}", file=sys.stderr)
    return 0


def _refuse(why: Exception | str) -> int:
    return fail(Settings.program, str(why), FAILED)


if __name__ == "__main__":
    sys.exit(main())
