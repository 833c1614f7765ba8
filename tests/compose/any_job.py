"""The dashboards under a job of another name, and with 48 layers of 128 experts: a test that needs a Prometheus."""

import os
import re
import sys

from tests.compose.stack import ComposeError, attempt, image
from tests.support.prometheus import IMAGE_VARIABLE

_TEST = "tests/end_to_end/test_many_experts.py::test_dashboards_answer_every_query_under_a_job_of_any_name"


def answered() -> str:
    """Runs the test with the image's Prometheus.

    Returns:
        What pytest says at the end.

    Raises:
        ComposeError: It failed, or did not run.
    """
    command = [sys.executable, "-m", "pytest", "-q", _TEST]
    done = attempt(*command, environment={**os.environ, IMAGE_VARIABLE: image("prometheus")})
    end = re.search(r"^1 passed in .*$", done.stdout, re.M)
    if done.returncode or end is None:
        raise ComposeError(f"{_TEST}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return end[0]
