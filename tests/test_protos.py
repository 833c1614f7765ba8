"""The committed stubs are what the protos generate, and the protos keep the rules of buf.yaml."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from tools import protos

BUF = Path(sys.executable).with_name("buf")
RELEASED = sorted((protos.PROTOS / "released").glob("*.binpb"))
RUN = """
// What is asked.
message RunRequest {}

// What is answered.
message RunResponse {}
"""


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    stale = folder / protos.PACKAGE / "gone_pb2.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    (stale.parent / "__init__.py").write_text("kept")
    protos.generate(folder)
    return folder / protos.PACKAGE


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    path = tmp_path_factory.mktemp("descriptors") / "set"
    protos.protoc(f"--descriptor_set_out={path}")
    return list(FileDescriptorSet.FromString(path.read_bytes()).file)


def test_the_committed_stubs_are_generated_from_the_protos(generated: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*")}

    fresh, committed = contents(generated), contents(protos.ROOT / protos.PACKAGE)
    assert sorted(fresh) == sorted(committed)
    assert len(fresh) == 4 * len(protos.NAMES)
    changed = [name for name in sorted(fresh) if fresh[name] != committed[name]]
    assert not changed, "run `make protos`"


def test_generating_removes_stale_stubs_and_nothing_else(generated: Path) -> None:
    assert not (generated / "gone_pb2.py").exists()
    assert (generated / "__init__.py").read_text() == "kept"


def test_the_protos_keep_the_rules(files: list[FileDescriptorProto]) -> None:
    assert _buf(protos.ROOT, "lint") == {}
    assert sorted(file.name for file in files) == list(protos.NAMES)
    # stricter than buf, which accepts any syntax, and names that begin with the service's
    assert {file.syntax for file in files} == {"proto3"}
    for method in (method for file in files for service in file.service for method in service.method):
        assert method.input_type == f".fiddler.v1.{method.name}Request"
        assert method.output_type == f".fiddler.v1.{method.name}Response"


def test_requests_and_responses_belong_to_one_rpc(tmp_path: Path) -> None:
    service = """
        // Runs.
        service RunService {
          // Once.
          rpc Run(RunRequest) returns (RunResponse);
          // Again.
          rpc RunServiceRun(RunRequest) returns (RunResponse);
        }
    """
    found = _lint(tmp_path, "a.proto", service + RUN)["RPC_REQUEST_RESPONSE_UNIQUE"]
    assert any("RunRequest" in message for message in found), found
    assert any("RunResponse" in message for message in found), found


@pytest.mark.parametrize(
    ("name", "content", "rule", "message"),
    [
        ("a.proto", 'syntax = "proto3"; package fiddler.v2;', "PACKAGE_DIRECTORY_MATCH", "fiddler.v2"),
        ("a.proto", "package fiddler.v1;", "SYNTAX_SPECIFIED", "syntax"),
        ("Shape.proto", "", "FILE_LOWER_SNAKE_CASE", "Shape.proto"),
        ("a.proto", 'import public "fiddler/v1/tensor.proto";', "IMPORT_NO_PUBLIC", "tensor.proto"),
        ("a.proto", 'import "fiddler/v1/tensor.proto";', "IMPORT_USED", "tensor.proto"),
        ("a.proto", "message shape {}", "MESSAGE_PASCAL_CASE", "shape"),
        ("a.proto", "message A { uint32 numRows = 1; }", "FIELD_LOWER_SNAKE_CASE", "numRows"),
        ("a.proto", "message A { oneof What { bool b = 1; } }", "ONEOF_LOWER_SNAKE_CASE", "What"),
        ("a.proto", "message A { message b {} }", "MESSAGE_PASCAL_CASE", "b"),
        ("a.proto", "enum e_num { E_NUM_UNSPECIFIED = 0; }", "ENUM_PASCAL_CASE", "e_num"),
        ("a.proto", "enum BigEnum { ZERO = 0; }", "ENUM_VALUE_PREFIX", "BIG_ENUM_"),
        ("a.proto", "enum E { E_none = 0; }", "ENUM_VALUE_UPPER_SNAKE_CASE", "E_none"),
        ("a.proto", "enum E { E_NONE = 0; }", "ENUM_ZERO_VALUE_SUFFIX", "_UNSPECIFIED"),
        ("a.proto", "enum E { E_UNSPECIFIED = 1; }", "COMPILE", "zero"),
        (
            "a.proto",
            "enum E { option allow_alias = true; E_UNSPECIFIED = 0; E_OTHER = 0; }",
            "ENUM_NO_ALLOW_ALIAS",
            "allow_alias",
        ),
        ("a.proto", "service Experts {}", "SERVICE_SUFFIX", "Experts"),
        (
            "a.proto",
            "service AService { rpc Run(Tensor) returns (RunResponse); }" + RUN,
            "RPC_REQUEST_STANDARD_NAME",
            "RunRequest",
        ),
        (
            "a.proto",
            "service AService { rpc Run(RunRequest) returns (Tensor); }" + RUN,
            "RPC_RESPONSE_STANDARD_NAME",
            "RunResponse",
        ),
        ("a.proto", "service AService { rpc run(RunRequest) returns (RunResponse); }" + RUN, "RPC_PASCAL_CASE", "run"),
        ("a.proto", "message A {}", "COMMENT_MESSAGE", '"A"'),
        ("a.proto", "message A { bool b = 1; }", "COMMENT_FIELD", '"b"'),
        ("a.proto", "message A { oneof c { bool b = 1; } }", "COMMENT_ONEOF", '"c"'),
        ("a.proto", "enum E { E_UNSPECIFIED = 0; }", "COMMENT_ENUM", '"E"'),
        ("a.proto", "enum E { E_UNSPECIFIED = 0; }", "COMMENT_ENUM_VALUE", "E_UNSPECIFIED"),
        ("a.proto", "service AService {}", "COMMENT_SERVICE", "AService"),
        ("a.proto", "service AService { rpc Run(RunRequest) returns (RunResponse); }" + RUN, "COMMENT_RPC", "Run"),
        ("a.proto", "// buf:lint:ignore MESSAGE_PASCAL_CASE\nmessage shape {}", "MESSAGE_PASCAL_CASE", "shape"),
    ],
)
def test_the_rules_are_noticed_when_broken(name: str, content: str, rule: str, message: str, tmp_path: Path) -> None:
    found = _lint(tmp_path, name, content)
    assert any(message in each for each in found.get(rule, [])), found


def test_the_protos_break_no_client_of_the_last_release() -> None:
    assert len(RELEASED) == 1, "protos/released holds the last release and no other"
    assert _buf(protos.ROOT, "breaking", "--against", str(RELEASED[0])) == {}


@pytest.mark.parametrize(
    ("name", "old", "new", "rule"),
    [
        ("tensor", "  DTYPE_FLOAT16 = 4;\n", "", "ENUM_VALUE_NO_DELETE"),
        ("tensor", "  reserved 4 to 7;\n", "", "RESERVED_MESSAGE_NO_DELETE"),
        ("tensor", "  Dtype dtype = 2;", "  Dtype dtype = 8;", "FIELD_NO_DELETE"),
        ("tensor", "  Dtype dtype = 2;", "  Dtype type = 2;", "FIELD_SAME_NAME"),
        ("experts", "  uint64 sequence = 1;", "  uint32 sequence = 1;", "FIELD_SAME_TYPE"),
        (
            "experts",
            "  optional uint32 protocol_version = 1;",
            "  uint32 protocol_version = 1;",
            "FIELD_SAME_CARDINALITY",
        ),
        ("experts", "rpc Run(stream RunRequest)", "rpc Run(RunRequest)", "RPC_SAME_CLIENT_STREAMING"),
        ("generation", "  rpc Abort(AbortRequest) returns (AbortResponse);\n", "", "RPC_NO_DELETE"),
        ("generation", "Usage ", "Counts ", "MESSAGE_NO_DELETE"),
    ],
)
def test_a_change_that_breaks_clients_is_noticed(name: str, old: str, new: str, rule: str, tmp_path: Path) -> None:
    shutil.copytree(protos.PROTOS, tmp_path / "protos")
    path = tmp_path / "protos" / protos.PACKAGE / f"{name}.proto"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert rule in _buf(tmp_path, "breaking", "--against", str(RELEASED[0]))


def _lint(folder: Path, name: str, content: str) -> dict[str, list[str]]:
    """Writes a file next to tensor.proto, lints both and returns the complaints by rule."""
    package = folder / "protos" / protos.PACKAGE
    package.mkdir(parents=True)
    shutil.copy(protos.PROTOS / protos.PACKAGE / "tensor.proto", package)
    head = "" if "package " in content else 'syntax = "proto3";\npackage fiddler.v1;\n'
    head += 'import "fiddler/v1/tensor.proto";\n' if "Tensor" in content else ""
    (package / name).write_text(head + content)
    return _buf(folder, "lint")


def _buf(folder: Path, *command: str) -> dict[str, list[str]]:
    """Runs buf on `folder`/protos; returns its complaints by rule."""
    config = ["--config", str(protos.ROOT / "buf.yaml"), "--error-format", "json"]
    done = subprocess.run([BUF, *command, *config], cwd=folder, capture_output=True, text=True, timeout=60)
    problems = [json.loads(line) for line in done.stdout.splitlines()]
    # 100: it found something; any other status is a failure of buf itself
    assert done.returncode == (100 if problems else 0), done.stderr
    found: dict[str, list[str]] = {}
    for problem in problems:
        found.setdefault(problem["type"], []).append(problem["message"])
    return found
