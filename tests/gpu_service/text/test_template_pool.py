"""Templates in processes of their own: as transformers renders them, and within bounds."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gpu_service.text.template_pool import PoolBusyError, RenderError, RenderTimeoutError, TemplatePool
from tests.support.pages import ROOT

_ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
_MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Ünï \U0001f642\n\ud7ff"},
    {"role": "assistant", "content": None},
]
_SIMPLE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def pool() -> Iterator[TemplatePool]:
    pool = TemplatePool(num_workers=1, cpu_seconds=0.3, memory_bytes=2**28, max_characters=1000, wait_seconds=0.05)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (_SIMPLE, {}),
        ("{{ messages | tojson }}{{ tools | tojson(indent=2) }}{{ mood }}", {"tools": [{"b": 1, "a": 2}], "mood": "x"}),
        ("{{ bos_token }}{% if add_generation_prompt %}yes{% endif %}", {"bos_token": "<s>"}),
        ("{% if add_generation_prompt %}yes{% endif %}", {"add_generation_prompt": False}),
    ],
)
def test_a_text_is_what_transformers_makes(pool: TemplatePool, source: str, arguments: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"add_generation_prompt": True, **arguments}
    theirs: Any = render_jinja_template(conversations=[list(_MESSAGES)], chat_template=source, **settings)
    assert pool.render(source, _MESSAGES, arguments) == theirs[0][0]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ raise_exception('never') }}", "never"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ raise_exception('x' * 9999) }}", "x" * 500),
        ("{{ 'a' * 3000000000 }}", "it needs too much memory"),
        ("{{ 'a' * 1001 }}", "it makes a text of 1001 characters, more than 1000"),
    ],
)
def test_what_a_template_may_not_do_fails_and_the_next_render_does_not(
    pool: TemplatePool, source: str, problem: str
) -> None:
    with pytest.raises(RenderError) as raised:
        pool.render(source, _MESSAGES, {})
    assert str(raised.value) == problem
    assert pool.render(_SIMPLE, _MESSAGES[:1], {}) == _MESSAGES[0]["content"]


def test_an_endless_template_is_ended(pool: TemplatePool) -> None:
    began = time.monotonic()
    with pytest.raises(RenderTimeoutError, match=r"more than 0\.3 s of CPU time"):
        pool.render(_ENDLESS, _MESSAGES, {})
    assert time.monotonic() - began < 60
    assert pool.render(_SIMPLE, _MESSAGES[:1], {}) == _MESSAGES[0]["content"]


def test_whoever_finds_no_free_process_in_time_is_told(pool: TemplatePool) -> None:
    def take_long() -> None:
        with pytest.raises(RenderTimeoutError):
            pool.render(_ENDLESS, _MESSAGES, {})

    busy = threading.Thread(target=take_long)
    busy.start()
    while not pool._idle.empty():
        time.sleep(0.001)
    with pytest.raises(PoolBusyError):
        pool.render(_SIMPLE, _MESSAGES, {})
    busy.join()


def test_a_process_that_cannot_start_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_service.text.template_pool._WORKER", ROOT / "no_such_file.py")
    pool = TemplatePool(num_workers=1)
    with pytest.raises(RenderError, match="its process ended with status 2"):
        pool.render(_SIMPLE, _MESSAGES, {})
    pool.close()


def test_the_processes_end_with_the_service_however_it_ends() -> None:
    program = (
        "import os\n"
        "from gpu_service.text.template_pool import shared_pool\n"
        "shared_pool().render('x', [], {})\n"
        "print(shared_pool()._idle.get()._process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}/exe") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}/exe")
