"""Long functions beside the event loop, and the end of the process while one runs."""

import asyncio
import subprocess
import sys
import textwrap

import pytest

from gpu_service.startup.background import in_thread

_WHILE_ONE_RUNS = """
    import asyncio, contextlib, sys, threading
    import torch
    from gpu_service.startup import background

    begun = threading.Event()

    def for_ever() -> None:
        numbers = torch.ones(300, 300)
        while True:
            numbers @ numbers
            begun.set()

    async def serve() -> None:
        task = asyncio.create_task(background.in_thread(for_ever))
        await asyncio.to_thread(begun.wait)
        task.cancel()

    asyncio.run(serve())
    print("said")
    background.leave(int(sys.argv[1]))
"""


def test_a_result_and_an_error_are_handed_over() -> None:
    def fail() -> None:
        raise ValueError("no")

    assert asyncio.run(in_thread(lambda: 7)) == 7
    with pytest.raises(ValueError, match="no"):
        asyncio.run(in_thread(fail))


@pytest.mark.parametrize("status", [0, 1])
def test_a_function_that_runs_in_native_code_does_not_abort_the_process(status: int) -> None:
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(_WHILE_ONE_RUNS), str(status)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (status, "said\n", "")
