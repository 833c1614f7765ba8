"""The process that renders chat templates. template_pool.py starts it by its path; it imports nothing of the service.

A template is a program of the checkpoint: it may loop for ever, or make a text that no memory holds. Neither can be
stopped within a process that does anything else. Here a render has seconds of CPU time, after which the kernel ends the
process, and some memory, after which the render fails.

It reads a line of JSON for each render, {"source", "messages", "arguments"}, and answers with a line of JSON: {"text"}
or {"error"}. Its arguments are the limits: seconds, bytes of memory, characters of a text.
"""

import json
import os
import resource
import signal
import sys
from typing import Any

_MAX_ERROR_LENGTH = 500  # a template's own words may hold a caller's whole text


def render(job: dict[str, Any]) -> str:
    """The text that a template makes. Raises whatever the template raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    settings: dict[str, Any] = {"add_generation_prompt": True, **job["arguments"]}
    rendered: Any = render_jinja_template(conversations=[job["messages"]], chat_template=job["source"], **settings)
    return str(rendered[0][0])


def answer(line: bytes, max_characters: int) -> dict[str, str]:
    """The answer to one job."""
    try:
        text = render(json.loads(line))
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # a template may raise anything
        return {"error": str(error)[:_MAX_ERROR_LENGTH] or type(error).__name__}
    if len(text) > max_characters:
        return {"error": f"it makes a text of {len(text)} characters, more than {max_characters}"}
    return {"text": text}


def main(seconds: float, num_bytes: int, max_characters: int) -> None:
    """Answers jobs until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the service, which ends this process
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints is no answer
        warm_up = {"source": "{{ messages }}", "messages": [], "arguments": {}}
        answer(json.dumps(warm_up).encode(), max_characters)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, used + num_bytes))
        for line in sys.stdin.buffer:
            signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process, whatever it computes
            reply = answer(line, max_characters)
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.write(json.dumps(reply).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
