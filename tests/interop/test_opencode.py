"""opencode, an agent that people use with a model of their own: it reads a file because the model asks it to."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import Chunk, GenerateResponse, MessageDelta, ToolCallDelta
from tests.support.fake_server import complete, serving
from tests.support.http_gateways import listening

COMMAND = Path(__file__).parent / "node" / "node_modules" / ".bin" / "opencode"
# An agent asks only the server of its configuration.
OFFLINE = {
    f"OPENCODE_DISABLE_{what}": "1" for what in ("MODELS_FETCH", "AUTOUPDATE", "LSP_DOWNLOAD", "DEFAULT_PLUGINS")
}

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not COMMAND.exists(), reason="opencode is not installed: run `make interop`"
)


def _configuration(url: str) -> dict[str, Any]:
    """As README shows it."""
    return {
        "provider": {
            "fiddler": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Fiddler",
                "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
                "models": {"demo": {"tool_call": True, "limit": {"context": 8192, "output": 1024}}},
            }
        },
        "model": "fiddler/demo",
        "small_model": "fiddler/demo",
        "share": "disabled",
        "autoupdate": False,
    }


def test_the_agent_calls_a_tool_and_tells_what_it_found(tmp_path: Path) -> None:
    results: list[str] = []

    def script(request: generation_pb2.GenerateRequest, context: object) -> Iterator[GenerateResponse]:
        last, end = request.chat.messages[-1], complete()
        if last.role == "tool":
            results.append(last.content)
            yield GenerateResponse(chunk=Chunk(delta=MessageDelta(content="It says 42.")))
        elif any(tool.name == "read" for tool in request.chat.tools):
            call = ToolCallDelta(
                id="call_1", name="read", arguments=json.dumps({"filePath": str(tmp_path / "note.txt")})
            )
            yield GenerateResponse(chunk=Chunk(delta=MessageDelta(tool_calls=[call])))
            end.complete.finish_reason = generation_pb2.FINISH_REASON_TOOL_CALLS
        else:  # it asks for a title
            yield GenerateResponse(chunk=Chunk(delta=MessageDelta(content="A note")))
        yield end

    (tmp_path / "note.txt").write_text("the answer is 42\n")
    folders = {f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("DATA", "CONFIG", "CACHE", "STATE")}
    with serving() as fake, listening(fake.target) as url:
        fake.service.script = script
        configuration = tmp_path / "opencode.json"
        configuration.write_text(json.dumps(_configuration(url)))
        own = {"HOME": str(tmp_path), "PWD": str(tmp_path), "OPENCODE_CONFIG": str(configuration), "NO_PROXY": "*"}
        done = subprocess.run(
            [str(COMMAND), "run", "--model", "fiddler/demo", "What does note.txt say?"],
            cwd=tmp_path,
            env={**os.environ, **OFFLINE, **folders, **own},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert (done.returncode, done.stdout.strip()) == (0, "It says 42."), done.stderr
    assert len(results) == 1
    assert "the answer is 42" in results[0]
