"""The page in headless Chromium: streams, stops, keeps settings, shows that the service is away, and recovers."""

import json
import os
import shutil
import subprocess
import time
from typing import Any

import pytest

from client import Client
from tests.support.interop_python import ENVIRONMENT, FOLDER, PYTHON, needs_environment
from tests.support.pairs import DEMO, WarmPair
from tests.support.ports import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_SECONDS = 60.0

pytestmark = [needs_environment, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]


class Driver:
    """The program that drives the browser, step by step."""

    def __init__(self, url: str) -> None:
        command = [str(PYTHON), "page.py", f"{url}/", str(CHROMIUM)]
        self.process = subprocess.Popen(
            command,
            cwd=FOLDER,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self, name: str) -> dict[str, Any]:
        """What the program reports of its next step, which must have this name."""
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert found.pop("step") == name
        return found

    def go_on(self) -> None:
        """Lets it take the next step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def test_a_chat_from_its_first_token_to_the_return_of_the_service() -> None:
    http = f"127.0.0.1:{free_port()}"
    with WarmPair(DEMO, gpu_arguments=("--device", "cpu"), http=http) as pair, Client(pair.target) as client:
        driver = Driver(f"http://{http}")
        try:
            streaming = driver.step("streaming")
            assert streaming["grew"]
            assert "4 layers of 8 experts" in streaming["map"]
            assert client.server_info().running_requests == 1
            driver.go_on()

            assert "stopped" in driver.step("stopped")["facts"]
            deadline = time.monotonic() + WAIT_SECONDS
            while client.server_info().used_slots:
                assert time.monotonic() < deadline, "the server still generates"
                time.sleep(0.05)
            driver.go_on()

            assert driver.step("reloaded") == {"kept": ["0.9", "1500", "5"], "conversation": True}
            pair.stop("gpu_service")
            driver.go_on()

            away = driver.step("away")
            assert "not available" in away["banner"]
            assert "the GPU service is not available" in away["error"]
            pair.start("gpu_service")
            pair.wait_until_serving()
            driver.go_on()

            driver.step("back")
            driver.go_on()
            assert driver.step("end") == {"elsewhere": [], "problems": []}
            driver.go_on()
            assert driver.process.wait(WAIT_SECONDS) == 0
        finally:
            driver.process.kill()
            driver.process.wait()
