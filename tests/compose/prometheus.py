"""The parts of Prometheus' HTTP interface that the test uses."""

import json
import math
import time
import urllib.parse
import urllib.request
from typing import Any

from tests.compose.stack import wait


class Prometheus:
    """A Prometheus server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Returns the data of an answer, e.g. of "targets"."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Returns the current values by labels."""
        return {
            json.dumps(series["metric"], sort_keys=True): float(series["value"][1])
            for series in self.get("query", query=expression)["result"]
        }

    def total(self, expression: str) -> float:
        """Returns the sum of the current values; 0 if there are none."""
        return math.fsum(self.query(expression).values())

    def wait_for_scrapes(self) -> None:
        """Waits until both services have been scraped after now."""
        now = time.time()

        def scraped() -> bool:
            times = self.query('timestamp(up{job=~"gpu_service|cpu_expert_service"})')
            return len(times) == 2 and min(times.values()) > now

        wait("both services have been scraped", scraped)
