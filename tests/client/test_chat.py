"""`python -m client --chat`: with a script's lines, and with a person at a terminal."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from fiddler import rpc
from fiddler.v1 import generation_pb2
from tests.support.fake_server import FakeServer, chunk, complete, fail_with, hang_after, in_turn

TIMEOUT_SECONDS = 20.0


def run(server: FakeServer, lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "client", "--chat", "--target", server.target, *arguments],
        input=lines,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def said(request: generation_pb2.GenerateRequest) -> list[str]:
    return [f"{message.role}: {message.content}" for message in request.chat.messages]


def answer(text: str) -> object:
    return lambda request, context: iter([chunk(text, 1), complete()])


def test_a_script_talks_a_line_at_a_time_and_the_model_hears_all_of_it(server: FakeServer) -> None:
    server.service.script = in_turn(answer("Hi."), answer("Sure."), answer("Anew."))  # type: ignore[arg-type]
    lines = "hello\n\ncan you?\n/nonsense\n/reset\nagain\n"
    done = run(server, lines, "--system", "Be brief.", "--max-tokens", "7")
    assert (done.returncode, done.stdout) == (0, "Hi.\nSure.\nAnew.\n")
    first, second, third = server.service.requests
    assert first.max_tokens == 7
    assert said(first) == ["system: Be brief.", "user: hello"]
    assert said(second) == ["system: Be brief.", "user: hello", "assistant: Hi.", "user: can you?"]
    assert said(third) == ["system: Be brief.", "user: again"]
    assert done.stderr.startswith("/nonsense is unknown")


def test_the_prompt_is_said_first_and_quit_ends_it(server: FakeServer) -> None:
    done = run(server, "/quit\nnever said\n", "hello")
    assert done.returncode == 0
    assert [said(request) for request in server.service.requests] == [["user: hello"]]


def test_json_is_every_message_and_the_answer_is_remembered(server: FakeServer) -> None:
    done = run(server, "one\ntwo\n", "--json")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2 * 5
    assert said(server.service.requests[1])[1] == "assistant: Once upon a time é🙂"


def test_a_model_without_a_template_says_so(server: FakeServer) -> None:
    server.service.has_chat_template = False
    done = run(server, "hello\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "client: --chat: demo has no chat template; without --chat it continues a text\n"


def test_a_script_gets_the_error_of_an_answer(server: FakeServer) -> None:
    server.service.script = fail_with(rpc.busy("256 requests wait already", 1))
    done = run(server, "hello\nnever said\n")
    assert (done.returncode, done.stderr) == (4, "client: 256 requests wait already\n")
    assert len(server.service.requests) == 1


class Person:
    """Somebody at a terminal."""

    def __init__(self, terminal: int, process: subprocess.Popen[bytes]) -> None:
        self._terminal = terminal
        self.process = process
        self._shown = ""

    def types(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def sees(self, text: str) -> None:
        """Waits until the terminal shows it, after what was seen before."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while text not in self._shown:
            assert time.monotonic() < deadline, self._shown
            if select.select([self._terminal], [], [], 0.1)[0]:
                self._shown += os.read(self._terminal, 10_000).decode(errors="replace")
        self._shown = self._shown.partition(text)[2]


@contextmanager
def at_a_terminal(server: FakeServer, *arguments: str) -> Iterator[Person]:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "client", "--chat", "--target", server.target, *arguments]
    # a new session's first terminal is its own: Ctrl-C is then a signal
    opens_it = ["sh", "-c", 'exec "$@" < "$0" > "$0" 2>&1', os.ttyname(theirs)]
    with subprocess.Popen([*opens_it, *command], start_new_session=True) as process:
        try:
            yield Person(ours, process)
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)


def test_a_person_talks_stops_an_answer_and_leaves(server: FakeServer) -> None:
    server.service.script = in_turn(hang_after(chunk("It all", 1)), answer("Well."))  # type: ignore[arg-type]
    with at_a_terminal(server) as person:
        person.sees("/quit or Ctrl-D leaves")
        person.sees("> ")
        person.types("tell me\n")
        person.sees("It all")
        person.types("\x03")
        person.sees("(stopped)")
        assert server.service.cancelled.wait(TIMEOUT_SECONDS)
        person.sees("> ")
        person.types("and now?\n")
        person.sees("Well.")
        person.sees("> ")
        person.types("\x04")
        assert person.process.wait(TIMEOUT_SECONDS) == 0
    assert said(server.service.requests[1]) == ["user: tell me", "assistant: It all", "user: and now?"]


def test_an_interrupt_at_the_prompt_leaves(server: FakeServer) -> None:
    with at_a_terminal(server) as person:
        person.sees("> ")
        person.types("\x03")
        assert person.process.wait(TIMEOUT_SECONDS) == 130


def test_a_person_can_go_on_after_an_error(server: FakeServer) -> None:
    broken = fail_with(rpc.StatusError(grpc.StatusCode.INTERNAL, "it broke"))
    server.service.script = in_turn(broken, answer("Well."))  # type: ignore[arg-type]
    with at_a_terminal(server) as person:
        person.sees("> ")
        person.types("one\n")
        person.sees("client: it broke")
        person.sees("> ")
        person.types("two\n")
        person.sees("Well.")
        person.sees("> ")
        person.types("/quit\n")
        assert person.process.wait(TIMEOUT_SECONDS) == 0
    assert said(server.service.requests[1]) == ["user: two"]


def test_an_interrupt_ends_a_script_s_chat(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    command = [sys.executable, "-m", "client", "--chat", "hello", "--target", server.target]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 100)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_SECONDS) == 130
    assert server.service.cancelled.wait(TIMEOUT_SECONDS)
