"""`python -m http_gateway`: reads settings and serves. What the user can put right is reported in one line."""

import sys

from fiddler import process

process.prepare()

from http_gateway.settings import Settings  # noqa: E402 - grpc is imported after the process is prepared


def main() -> int:
    """Runs the gateway. Returns its exit status: 0 after a signal, 1 if it could not start."""
    settings = Settings.load()
    # imported here, so that --help and a wrong flag need not wait for FastAPI
    from fiddler import logs
    from fiddler.errors import is_user_error
    from http_gateway import server

    logs.configure(settings.log_level, settings.log_format)
    try:
        server.run(settings)
    except Exception as error:
        if not is_user_error(error):
            raise
        logs.say(f"{Settings.program}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
