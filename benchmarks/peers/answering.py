"""The other end of a worker: answers requests on standard input with lines of JSON on standard output."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Step = Callable[[Sequence[int]], int]
"""Computes tokens after those that were computed before, and returns the most probable next one."""


@contextmanager
def libraries_kept_silent() -> Iterator[None]:
    """Sends what libraries write to standard output to standard error, until answers are written there."""
    answers = os.dup(1)
    os.dup2(2, 1)
    yield
    os.dup2(answers, 1)


def answer(begin: Callable[[], None], step: Step) -> None:
    """Generates greedily until the input ends.

    A request is {"prompt": [token ids], "num_tokens": n}; its answer {"first": seconds until the first token, "later":
    seconds for each further token, "tokens": [token ids]}.

    Args:
        begin: Forgets what was computed.
        step: See Step.
    """
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        begin()
        began = time.perf_counter()
        tokens = [step(request["prompt"])]
        first = time.perf_counter()
        while len(tokens) < request["num_tokens"]:
            tokens.append(step(tokens[-1:]))
        later = (time.perf_counter() - first) / max(1, len(tokens) - 1)
        print(json.dumps({"first": first - began, "later": later, "tokens": tokens}), flush=True)
