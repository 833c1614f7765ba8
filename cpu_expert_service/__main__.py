"""`python -m cpu_expert_service`: reads settings, serves, and tells a user's mistake in one line."""

import sys

from fiddler import process

process.prepare()

from cpu_expert_service.settings import Settings  # noqa: E402 - grpc is imported after the process is prepared


def main() -> int:
    """Runs the service. Returns its exit status: 0 after a signal, 1 where it could not start."""
    settings = Settings.load()
    # imported here, so that --help and a wrong flag need not wait for torch
    from cpu_expert_service import server
    from cpu_expert_service.cpus import CpuListError
    from cpu_expert_service.kernel_choice import KernelError
    from fiddler import logs
    from fiddler.errors import UserError

    logs.configure(settings.log_level, settings.log_format)
    try:
        server.run(settings)
    except (UserError, KernelError, CpuListError, OSError) as error:
        print(f"cpu_expert_service: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
