"""`python -m gpu_service`: reads settings, serves, and tells a user's mistake in one line."""

import asyncio
import sys

from fiddler import process

process.prepare()

from gpu_service.settings import Settings  # noqa: E402 - grpc is imported after the process is prepared


def main() -> int:
    """Runs the service. Returns its exit status: 0 after a signal, 1 where it could not start."""
    settings = Settings.load()
    # imported here, so that --help and a wrong flag need not wait for torch and transformers
    from fiddler import logs
    from fiddler.checkpoint import CheckpointError
    from gpu_service import server
    from gpu_service.engine import EngineStoppedError
    from gpu_service.expert_client import ExpertServiceError
    from gpu_service.model_loading import ModelError

    logs.configure(settings.log_level, settings.log_format)
    try:
        asyncio.run(server.run(settings))
    except (CheckpointError, ModelError, ExpertServiceError, EngineStoppedError, OSError, ValueError) as error:
        print(f"gpu_service: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
