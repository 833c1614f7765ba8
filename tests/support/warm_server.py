"""The fork server of tests/support/warm_processes.py: `python -m tests.support.warm_server SERVICE SOCKET`.

It imports the service's modules. It must not use gRPC or compute with torch, whose threads do not survive a fork.
"""

import gc
import importlib
import json
import os
import runpy
import socket
import sys
import time
import traceback

from fiddler import process

_IMPORTS = {
    "fiddler.convert": ["fiddler.convert.__main__", "fiddler.convert.conversion"],
    "cpu_expert_service": ["cpu_expert_service.settings", "cpu_expert_service.server"],
    "gpu_service": [
        "gpu_service.api.auth",
        "gpu_service.server",
        "transformers.models.mixtral.modeling_mixtral",
        "transformers.models.auto.tokenization_auto",
        "transformers.generation.utils",
    ],
}
_LARGEST_MESSAGE = 1 << 20


def main() -> None:
    """Forks on request until the other end of the socket is closed."""
    service, connection = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    process.prepare()
    for name in _IMPORTS[service]:
        importlib.import_module(name)
    gc.freeze()
    parent = os.getppid()
    while True:
        message, files, _, _ = socket.recv_fds(connection, _LARGEST_MESSAGE, 3)
        if not message:
            return
        if (middle := os.fork()) == 0:
            if os.fork() == 0:
                _run(message, files=files, connection=connection, parent=parent)
            os._exit(0)  # so that the process that asked adopts the service
        os.waitpid(middle, 0)
        for file in files:
            os.close(file)


def _run(message: bytes, *, files: list[int], connection: socket.socket, parent: int) -> None:
    directory, environment, arguments = json.loads(message)
    while os.getppid() != parent:
        time.sleep(0.001)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    process.prepare()
    connection.send(str(os.getpid()).encode())
    connection.close()
    sys.argv = [arguments[0], *arguments[1:]]
    status: object = 1
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:
        traceback.print_exc()
    finally:
        _end(status)


def _end(status: object) -> None:
    """Ends the process as Python does, without returning to the server's loop."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


if __name__ == "__main__":
    main()
