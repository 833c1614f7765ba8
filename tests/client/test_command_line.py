"""`python -m client`: outputs, options, exit statuses, and what a terminal shows."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from client.__main__ import main
from fiddler import rpc
from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import GenerateResponse
from tests.support.command_lines import TIMEOUT_SECONDS, assert_one_line, command, run, started, started_at
from tests.support.fake_server import (
    PIECES,
    FakeServer,
    Responses,
    chunk,
    complete,
    fail_with,
    hang_after,
    in_turn,
    tell_a_story,
)
from tests.support.terminals import terminal

MODULE = "client"
STORY = "".join(PIECES) + "\n"


@pytest.fixture(autouse=True)
def _buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    # PYTHONUNBUFFERED would hide a missing flush.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def test_the_text_is_printed_and_ends_in_a_newline(server: FakeServer) -> None:
    done = run(MODULE, "a prompt", "--target", server.target)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, STORY, b"")
    assert server.service.requests[0].text == "a prompt"


def test_the_text_is_printed_as_it_comes(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    with started(MODULE, "a prompt", "--target", server.target) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 100) == b"first"
        process.kill()


def test_every_option_arrives(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    options = (
        "--max-tokens 5 --min-tokens 0 --temperature 0 --top-k 0 --top-p 0.25 --min-p 0.5 --typical-p 0.75 --seed 0"
        " --repetition-penalty 1.5 --frequency-penalty -0.5 --presence-penalty 0 --logit-bias 7=-100 --logit-bias 0=1"
        " --stop one --stop two --include-stop --stop-token-id 1 --stop-token-id 2 --ignore-eos -n 1"
        " --num-beams 4 --length-penalty 0 --early-stopping never --num-return-sequences 1 --stream-best"
        " --logprobs 0 --prompt-logprobs 3 --echo --priority -2 --request-id mine --forced-bos-token-id 9"
        " --keep-special-tokens --truncate-prompt 0 --chunk-usage --prompt-progress --choice a --choice b"
        " --timeout 30"
    )
    assert main(["a prompt", "--target", server.target, *options.split()]) == 0
    (request,) = server.service.requests
    assert request == generation_pb2.GenerateRequest(
        text="a prompt",
        max_tokens=5,
        min_tokens=0,
        sampling=generation_pb2.SamplingParameters(
            temperature=0,
            top_k=0,
            top_p=0.25,
            min_p=0.5,
            typical_p=0.75,
            seed=0,
            repetition_penalty=1.5,
            frequency_penalty=-0.5,
            presence_penalty=0,
            logit_bias={7: -100, 0: 1},
        ),
        stop=["one", "two"],
        include_stop_in_output=True,
        stop_token_ids=[1, 2],
        ignore_eos=True,
        n=1,
        beam_search=generation_pb2.BeamSearch(
            num_beams=4,
            length_penalty=0,
            stop=generation_pb2.BEAM_STOP_NEVER,
            num_return_sequences=1,
            stream_best=True,
        ),
        logprobs=0,
        prompt_logprobs=3,
        echo=True,
        priority=-2,
        request_id="mine",
        forced_bos_token_id=9,
        skip_special_tokens=False,
        truncate_prompt=0,
        chunk_usage=True,
        prompt_progress=True,
        choice=generation_pb2.Choices(texts=["a", "b"]),
    )
    assert 20 < server.service.deadlines[0] < 31
    assert {field.name for field, _ in request.ListFields()} >= {
        field.name
        for field in request.DESCRIPTOR.fields
        if field.name not in ("token_ids", "chat", "json_schema", "json_object", "regex", "grammar")
    }, "a field that is new has an option"


def test_constraints_are_flags_or_files(server: FakeServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("schema", "grammar"):
        (tmp_path / name).write_text(f"a {name}")
    for flags in (
        ["--json-schema", str(tmp_path / "schema")],
        ["--grammar", str(tmp_path / "grammar")],
        ["--json-object"],
        ["--regex", "a+"],
    ):
        assert main(["a prompt", "--target", server.target, *flags]) == 0
    first, second, third, fourth = server.service.requests
    assert (first.json_schema, second.grammar) == ("a schema", "a grammar")
    assert (third.json_object, fourth.regex) == (True, "a+")
    assert main(["a prompt", "--target", server.target, "--json-schema", str(tmp_path / "none")]) == 2
    assert "--json-schema: cannot read" in capfd.readouterr().err


@pytest.mark.parametrize(("given", "sent"), [("true", "EARLY"), ("false", "HEURISTIC"), ("never", "NEVER")])
def test_early_stopping_is_a_word(server: FakeServer, given: str, sent: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["a prompt", "--target", server.target, "--num-beams", "2", "--early-stopping", given]
    assert main(arguments) == 0
    assert server.service.requests[0].beam_search.stop == generation_pb2.BeamStop.Value(f"BEAM_STOP_{sent}")


def test_several_texts_are_printed_whole_and_in_order(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    def of(index: int, response: GenerateResponse) -> GenerateResponse:
        (response.chunk if response.HasField("chunk") else response.complete).index = index
        return response

    ends = [complete(), complete()]
    ends[0].complete.score = -0.5
    sent = [of(1, chunk("be", 1)), of(0, chunk("a", 1)), of(1, chunk("\nta", 2)), of(1, ends[1]), of(0, ends[0])]
    server.service.script = lambda request, context: iter(sent)
    assert main(["a prompt", "--target", server.target, "-n", "2"]) == 0
    assert capfd.readouterr().out == "--- 1 of 2, score -0.5000 ---\na\n--- 2 of 2 ---\nbe\nta\n"


def test_a_beam_is_printed(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    best = GenerateResponse(beam=generation_pb2.BestBeam(text="never mind"))
    end = complete()
    end.complete.text = "the best"
    server.service.script = lambda request, context: iter([best, end])
    assert main(["a prompt", "--target", server.target, "--num-beams", "4", "--stream-best"]) == 0
    assert capfd.readouterr().out == "the best\n"


def test_a_busy_server_is_asked_again_where_told_to(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    busy = fail_with(rpc.busy("256 requests wait already", 0.01))
    server.service.script = in_turn(busy, tell_a_story)
    assert main(["a prompt", "--target", server.target]) == 4
    server.service.script = in_turn(busy, tell_a_story)
    assert main(["a prompt", "--target", server.target, "--retry"]) == 0
    assert capfd.readouterr().out == STORY


@pytest.mark.parametrize("arguments", [[], ["--token-file", "{file}"]])
def test_a_token_comes_from_a_file_or_the_environment(
    server: FakeServer, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("# mine\n\nfrom-the-file\nanother\n")
    monkeypatch.setenv("FIDDLER_TOKEN", "from-the-environment")
    arguments = [argument.format(file=file) for argument in arguments]
    assert main(["a prompt", "--target", server.target, *arguments]) == 0
    where = "file" if arguments else "environment"
    assert server.service.metadata[0]["authorization"] == f"Bearer from-the-{where}"


def test_no_token_is_none(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIDDLER_TOKEN", "")
    assert main(["a prompt", "--target", server.target]) == 0
    assert "authorization" not in server.service.metadata[0]


def test_info_is_two_lines_of_json(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--info", "--target", server.target]) == 0
    model, info = map(json.loads, capfd.readouterr().out.splitlines())
    assert (model["model"]["name"], info["server"]["limits"]["max_n"]) == ("demo", 3)


def test_abort_says_what_it_did(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--abort", "mine", "--target", server.target]) == 0
    assert main(["--abort", "another", "--target", server.target]) == 1
    assert_one_line(capfd.readouterr().err, MODULE, "no request another is under way")


def test_what_is_not_given_stays_unset(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["a prompt", "--target", server.target]) == 0
    (request,) = server.service.requests
    assert [field.name for field, _ in request.ListFields()] == ["text"]


def test_json_is_each_message_by_its_proto_names(server: FakeServer) -> None:
    done = run(MODULE, "a prompt", "--target", server.target, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert messages == [
        *({"chunk": {"index": 0, "token_ids": [n], "text": text, "logprobs": []}} for n, text in enumerate(PIECES)),
        {
            "complete": {
                "index": 0,
                "finish_reason": "FINISH_REASON_LENGTH",
                "usage": {"prompt_tokens": 3, "completion_tokens": 4, "cached_prompt_tokens": 0},
                "timings": {"queue_seconds": 0.25, "prefill_seconds": 0.5, "decode_seconds": 1.5},
                "token_ids": [],
                "text": "",
            }
        },
    ]


def test_json_is_printed_as_it_comes(server: FakeServer) -> None:
    server.service.script = hang_after(chunk("first", 1))
    with started(MODULE, "a prompt", "--target", server.target, "--json") as process:
        assert process.stdout is not None
        assert json.loads(os.read(process.stdout.fileno(), 1000)) == {
            "chunk": {"index": 0, "token_ids": [1], "text": "first", "logprobs": []}
        }
        process.kill()


def test_a_dash_reads_the_prompt_from_standard_input(server: FakeServer) -> None:
    assert run(MODULE, "-", "--target", server.target, stdin="zwei\nZeilen é".encode()).returncode == 0
    assert server.service.requests[0].text == "zwei\nZeilen é"


def test_a_prompt_may_start_with_a_dash(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", server.target, "--", "--not-an-option"]) == 0
    assert server.service.requests[0].text == "--not-an-option"


def test_standard_input_that_is_no_text_is_refused(server: FakeServer) -> None:
    done = run(MODULE, "-", "--target", server.target, stdin=b"ab\xff")
    assert done.returncode == 2
    assert_one_line(done.stderr, MODULE, "prompt", "UTF-8", "byte 2")


def test_an_argument_that_is_no_text_is_refused(server: FakeServer) -> None:
    arguments = [argument.encode() for argument in command(MODULE, "prompt", "--target", server.target)]
    arguments[3] = b"ab\xff"
    done = subprocess.run(arguments, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    assert done.returncode == 2
    assert_one_line(done.stderr, MODULE, "PROMPT: must be text")


def test_an_output_that_cannot_show_a_character_shows_another(server: FakeServer) -> None:
    done = run(MODULE, "a prompt", "--target", server.target, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"Once upon a time ??\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Missing argument", "PROMPT"]),
        (["a", "b"], ["unexpected extra argument"]),
        (["a", "--nonsense"], ["--nonsense"]),
        (["a", "--max-tokens", "many"], ["--max-tokens", "integer"]),
        (["a", "--target", "nowhere"], ["target", "nowhere", "HOST:PORT"]),
        (["a", "--seed", "-1"], ["sampling.seed", "-1"]),
        (["a", "--timeout", "0"], ["timeout"]),
        (["a", "--logit-bias", "7"], ["--logit-bias", "ID=BIAS", "'7'"]),
        (["a", "--early-stopping", "soon"], ["beam_search.stop", "'soon'"]),
        (["a", "--token-file", "/no/such/file"], ["--token-file", "/no/such/file"]),
        (["a", "--tls-ca", "/no/such/file"], ["tls_ca", "/no/such/file"]),
        (["a", "--tls-ca", "/etc/hostname"], ["tls_ca", "/etc/hostname", "PEM"]),
        (["a", "--tls-cert", "/etc/hostname"], ["tls_key", "tls_cert"]),
        (["--chat", "-n", "2"], ["-n", "--chat"]),
        (["--chat", "--echo"], ["--echo", "--chat"]),
    ],
)
def test_wrong_usage_is_one_line_and_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert_one_line(output.err, MODULE, *words)


@pytest.mark.parametrize(
    ("status", "exit_status"),
    [
        (rpc.invalid_argument("sampling.top_p", "must be at most 1, got 7"), 2),
        (rpc.StatusError(grpc.StatusCode.UNAVAILABLE, "the expert\nservice is gone"), 3),
        (rpc.StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests wait"), 4),
        (rpc.StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, "too late"), 5),
        (rpc.StatusError(grpc.StatusCode.UNAUTHENTICATED, "it has no token"), 6),
        (rpc.StatusError(grpc.StatusCode.CANCELLED, "cancelled"), 1),
        (rpc.StatusError(grpc.StatusCode.INTERNAL, "it broke"), 1),
    ],
)
def test_each_error_is_one_line_and_has_its_exit_status(
    server: FakeServer, status: rpc.StatusError, exit_status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    server.service.script = fail_with(status, chunk("first", 1))
    assert main(["a prompt", "--target", server.target]) == exit_status
    output = capfd.readouterr()
    assert output.out == "first\n", "the error begins a new line"
    flags = " (give it with --token-file FILE, or in the environment's FIDDLER_TOKEN)" if exit_status == 6 else ""
    assert output.err == f"client: {' '.join(status.message.split())}{flags}\n"


def test_no_call_is_left_to_be_deleted_when_python_exits(server: FakeServer) -> None:
    # Deleting it at exit could wait forever for a lock that a stopped thread of gRPC holds.
    server.service.script = fail_with(rpc.StatusError(grpc.StatusCode.INTERNAL, "it broke"), chunk("first", 1))
    gc.disable()
    try:
        assert main(["a prompt", "--target", server.target]) == 1
        assert [each for each in gc.get_objects() if type(each).__name__ == "_MultiThreadedRendezvous"] == []
    finally:
        gc.enable()


def test_nobody_listening_is_3(tmp_path: Path) -> None:
    done = run(MODULE, "a prompt", "--target", f"unix:{tmp_path}/nobody")
    assert (done.returncode, done.stdout) == (3, b"")
    assert_one_line(done.stderr, MODULE, "nobody")


def test_the_timeout_is_5(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.service.script = hang_after()
    assert main(["a prompt", "--target", server.target, "--timeout", "0.3"]) == 5
    assert_one_line(capfd.readouterr().err, MODULE, "eadline")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_interrupt_cancels_on_the_server_and_is_130(server: FakeServer, options: list[str]) -> None:
    server.service.script = hang_after(chunk("first", 1))
    with started(MODULE, "a prompt", "--target", server.target, *options) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1000)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, stderr) == (130, b"")
    assert server.service.cancelled.wait(TIMEOUT_SECONDS)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_leaves_ends_it_quietly(server: FakeServer, options: list[str]) -> None:
    def endless(request: object, context: grpc.ServicerContext) -> Responses:
        while context.is_active():
            yield chunk("more", 1)
            time.sleep(0.01)

    server.service.script = endless
    with started(MODULE, "a prompt", "--target", server.target, *options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 4)
        process.stdout.close()
        assert process.wait(TIMEOUT_SECONDS) == 0
        assert process.stderr.read() == b""
    assert server.service.cancelled.wait(TIMEOUT_SECONDS)


def test_an_output_that_is_full_is_an_error(server: FakeServer) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command(MODULE, "a prompt", "--target", server.target),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    assert done.returncode == 1
    assert_one_line(done.stderr, MODULE, "No space left")


def standard_error_at_a_terminal(*arguments: str) -> tuple[bytes, str]:
    """Runs the client; returns its standard output, and what a terminal shows of standard error."""
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40"}
    environment.pop("NO_COLOR", None)
    with terminal() as screen, started(MODULE, *arguments, stderr=screen.device, env=environment) as process:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        return output, screen.read_rest()


def test_a_terminal_shows_how_it_gets_on_and_then_one_dim_line_of_figures(server: FakeServer) -> None:
    def script(request: object, context: object) -> Responses:
        time.sleep(0.3)
        yield chunk("a", 1)
        time.sleep(0.5)
        yield chunk("b", 2)
        time.sleep(0.5)
        yield complete(completion_tokens=4)

    server.service.script = script
    output, shown = standard_error_at_a_terminal("a prompt", "--target", server.target)
    assert output == b"ab\n"
    *live, last = shown.split("\r\x1b[K")
    assert [line.strip() for line in live[:3]] == ["", "waiting for the first token", "1 token"]
    assert live[3].startswith("2 tokens, ")
    assert last.startswith("\x1b[2m4 tokens, first after "), "dim"
    assert shown.count("\n") == 1
    assert "ended by length" in last
    seconds = float(last.partition("after ")[2].partition(" s")[0])
    assert seconds > 0.25
    tokens_per_second = float(last.partition(" s, ")[2].partition(" tokens/s")[0])
    assert 0 < tokens_per_second < 3 / 0.9


def test_a_terminal_that_shows_the_text_is_not_written_over(server: FakeServer) -> None:
    server.service.script = lambda request, context: iter([chunk("first", 1), chunk(" second", 2), complete()])
    with terminal() as screen, started_at(screen, MODULE, "a prompt", "--target", server.target) as process:
        assert screen.wait_for_exit(process) == 0
        shown = screen.read_rest()
    before, text, after = shown.partition("first second\r\n")
    assert text
    assert before.endswith("\r\x1b[K")
    assert "\x1b[K" not in after
    assert "4 tokens" in after


def test_the_best_beam_so_far_is_shown_on_a_terminal(server: FakeServer) -> None:
    def script(request: object, context: object) -> Responses:
        time.sleep(0.2)
        yield GenerateResponse(beam=generation_pb2.BestBeam(token_ids=[1, 2], text="so\nfar", score=-0.25))
        yield complete()

    server.service.script = script
    _, shown = standard_error_at_a_terminal("a prompt", "--target", server.target, "--num-beams", "2", "--stream-best")
    assert "2 tokens, best score so far -0.250: so " in shown


def test_json_prints_no_figures(server: FakeServer) -> None:
    assert standard_error_at_a_terminal("a prompt", "--target", server.target, "--json")[1] == ""


def test_help_lists_the_exit_statuses() -> None:
    done = run(MODULE, "--help")
    assert done.returncode == 0
    assert b"Exit status: 0" in done.stdout
    assert b"130 interrupted" in done.stdout.replace(b"\n  ", b" ")


def test_help_imports_neither_grpc_nor_rich() -> None:
    probe = "import sys, client.__main__ as m; m.main(['--help']); sys.exit(bool({'grpc', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


def test_a_proxy_is_not_asked_for_this_machine(server: FakeServer) -> None:
    done = run(MODULE, "a prompt", "--target", server.target, http_proxy="http://127.0.0.1:1", no_proxy="")
    assert (done.returncode, done.stdout.decode()) == (0, STORY)
