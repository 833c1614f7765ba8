"""`python -m client --chat`, from a script and at a terminal."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import grpc

from fiddler import rpc
from fiddler.v1 import generation_pb2
from tests.support import command_lines
from tests.support.command_lines import TIMEOUT_SECONDS, started, started_at
from tests.support.fake_server import FakeServer, chunk, complete, fail_with, hang_after, in_turn
from tests.support.terminals import CTRL_C, CTRL_D, terminal

MODULE = "client"


def run(server: FakeServer, lines: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Chats with these lines as standard input."""
    return command_lines.run(MODULE, "--chat", "--target", server.target, *arguments, stdin=lines.encode())


def said(request: generation_pb2.GenerateRequest) -> list[str]:
    return [f"{message.role}: {message.content}" for message in request.chat.messages]


def answer(text: str) -> object:
    return lambda request, context: iter([chunk(text, 1), complete()])


def test_a_script_talks_a_line_at_a_time_and_the_model_hears_all_of_it(server: FakeServer) -> None:
    server.service.script = in_turn(answer("Hi."), answer("Sure."), answer("Again."))  # type: ignore[arg-type]
    lines = "hello\n\ncan you?\n/nonsense\n/reset\nagain\n"
    done = run(server, lines, "--system", "Be brief.", "--max-tokens", "7")
    assert (done.returncode, done.stdout) == (0, b"Hi.\nSure.\nAgain.\n")
    first, second, third = server.service.requests
    assert first.max_tokens == 7
    assert said(first) == ["system: Be brief.", "user: hello"]
    assert said(second) == ["system: Be brief.", "user: hello", "assistant: Hi.", "user: can you?"]
    assert said(third) == ["system: Be brief.", "user: again"]
    assert done.stderr.startswith(b"/nonsense is unknown")


def test_the_prompt_is_said_first_and_quit_ends_it(server: FakeServer) -> None:
    done = run(server, "/quit\nnever said\n", "hello")
    assert done.returncode == 0
    assert [said(request) for request in server.service.requests] == [["user: hello"]]


def test_json_is_every_message_and_the_answer_is_remembered(server: FakeServer) -> None:
    done = run(server, "one\ntwo\n", "--json")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2 * 5
    assert said(server.service.requests[1])[1] == "assistant: Once upon a time é🙂"


def test_an_answer_is_shown_in_its_parts_and_calls_get_their_results(server: FakeServer) -> None:
    def thinking(request: object, context: object) -> object:
        call = generation_pb2.ToolCallDelta(id="c1", name="look", arguments='{"at": "it"}')
        other = generation_pb2.ToolCallDelta(index=1, id="c2", name="go", arguments="{}")
        for delta in (
            generation_pb2.MessageDelta(reasoning="Hm"),
            generation_pb2.MessageDelta(reasoning=", so.", content="I "),
            generation_pb2.MessageDelta(content="look."),
            generation_pb2.MessageDelta(tool_calls=[call, other]),
        ):
            piece = chunk("<raw>", 1)
            piece.chunk.delta.CopyFrom(delta)
            yield piece
        yield complete()

    server.service.script = in_turn(thinking, answer("Done."))  # type: ignore[arg-type]
    done = run(server, "hello\nthere\ngone\n")
    assert done.stdout.decode() == (
        '[reasoning]\nHm, so.\n[answer]\nI look.\n[call] look {"at": "it"}\n[call] go {}\nDone.\n'
    )
    first, second = server.service.requests
    assert said(first) == ["user: hello"]
    assert said(second) == ["user: hello", "assistant: I look.", "tool: there", "tool: gone"]
    asked = second.chat.messages
    assert (asked[1].reasoning, [call.arguments for call in asked[1].tool_calls]) == ("Hm, so.", ['{"at": "it"}', "{}"])
    assert [(message.tool_call_id, message.name) for message in asked[2:]] == [("c1", "look"), ("c2", "go")]


def test_a_template_is_chosen_by_a_flag(server: FakeServer) -> None:
    done = run(server, "hello\n", "--chat-template", "rag")
    assert done.returncode == 0
    assert server.service.requests[0].chat.template == "rag"


def test_a_model_without_a_template_says_so(server: FakeServer) -> None:
    server.service.has_chat_template = False
    done = run(server, "hello\n")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"client: --chat: demo has no chat template; without --chat it continues a text\n"


def test_a_script_gets_the_error_of_an_answer(server: FakeServer) -> None:
    server.service.script = fail_with(rpc.busy("256 requests wait already", 1))
    done = run(server, "hello\nnever said\n")
    assert (done.returncode, done.stderr) == (4, b"client: 256 requests wait already\n")
    assert len(server.service.requests) == 1


def test_a_person_talks_stops_an_answer_and_leaves(server: FakeServer) -> None:
    server.service.script = in_turn(hang_after(chunk("It all", 1)), answer("Well."))  # type: ignore[arg-type]
    with terminal() as screen, started_at(screen, MODULE, "--chat", "--target", server.target) as process:
        screen.wait_for("/quit or Ctrl-D leaves")
        screen.wait_for("> ")
        screen.type("tell me\n")
        screen.wait_for("It all")
        screen.type(CTRL_C)
        screen.wait_for("(stopped)")
        assert server.service.cancelled.wait(TIMEOUT_SECONDS)
        screen.wait_for("> ")
        screen.type("and now?\n")
        screen.wait_for("Well.")
        screen.wait_for("> ")
        screen.type(CTRL_D)
        assert process.wait(TIMEOUT_SECONDS) == 0
    assert said(server.service.requests[1]) == ["user: tell me", "assistant: It all", "user: and now?"]


def test_an_interrupt_at_the_prompt_leaves(server: FakeServer) -> None:
    with terminal() as screen, started_at(screen, MODULE, "--chat", "--target", server.target) as process:
        screen.wait_for("> ")
        # readline misses a signal between its prompt and its first look at the keys; a person presses again
        for _ in range(3):
            screen.type(CTRL_C)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TIMEOUT_SECONDS)
                break
        assert process.poll() == 130


def test_a_person_can_go_on_after_an_error(server: FakeServer) -> None:
    broken = fail_with(rpc.StatusError(grpc.StatusCode.INTERNAL, "it broke"))
    server.service.script = in_turn(broken, answer("Well."))  # type: ignore[arg-type]
    with terminal() as screen, started_at(screen, MODULE, "--chat", "--target", server.target) as process:
        screen.wait_for("> ")
        screen.type("one\n")
        screen.wait_for("client: it broke")
        screen.wait_for("> ")
        screen.type("two\n")
        screen.wait_for("Well.")
        screen.wait_for("> ")
        screen.type("/quit\n")
        assert process.wait(TIMEOUT_SECONDS) == 0
    assert said(server.service.requests[1]) == ["user: two"]


def test_an_interrupt_ends_a_script_s_chat(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    with started(MODULE, "--chat", "hello", "--target", server.target) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 100)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_SECONDS) == 130
    assert server.service.cancelled.wait(TIMEOUT_SECONDS)


def test_tools_are_a_file_and_their_choice_a_word(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text('[{"name": "look", "parameters": {"type": "object"}}]')
    flags = (
        "--tools",
        str(path),
        "--tool-choice",
        "look",
        "--template-arguments",
        '{"enable_thinking": false}',
        "--one-tool-call",
    )
    assert run(server, "hello\n", *flags).returncode == 0
    (request,) = server.service.requests
    assert [tool.name for tool in request.chat.tools] == ["look"]
    assert request.chat.tool_choice.name == "look"
    assert request.chat.template_arguments == '{"enable_thinking": false}'
    path.write_text("[")
    done = run(server, "hello\n", "--tools", str(path))
    assert (done.returncode, b"--tools: " in done.stderr) == (2, True)
    alone = command_lines.run(MODULE, "hello", "--target", server.target, "--tool-choice", "auto")
    assert (alone.returncode, b"--tool-choice: must be given with --chat" in alone.stderr) == (2, True)
