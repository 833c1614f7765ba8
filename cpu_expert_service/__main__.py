"""`python -m cpu_expert_service`: reads settings and serves. What the user can put right is reported in one line."""

import sys

from fiddler import process

process.prepare()

# grpc is imported after the process is prepared
from cpu_expert_service.settings import Settings  # noqa: E402
from fiddler import logs  # noqa: E402
from fiddler.errors import is_user_error  # noqa: E402
from fiddler.running import early_checks  # noqa: E402


def main() -> int:
    """Runs the service. Returns its exit status: 0 after a signal, 1 if it could not start."""
    settings = Settings.load()
    try:
        early_checks.check(settings)
        # imported here, so that --help and most mistakes need not wait for torch
        from cpu_expert_service import server

        logs.configure(settings.log_level, settings.log_format)
        server.run(settings)
    except Exception as error:
        if not is_user_error(error):
            raise
        logs.say(f"{Settings.program}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
