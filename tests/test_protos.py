"""The committed stubs are what the protos generate, and the protos keep buf's STANDARD rules."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from tools import protos

_PASCAL = re.compile(r"[A-Z][A-Za-z0-9]*")
_LOWER_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")

# field numbers in descriptor.proto, of which a location's path is made
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM, _MESSAGE_ONEOF = 2, 3, 4, 8
_ENUM_VALUE, _SERVICE_METHOD = 2, 2

Location = tuple[int, ...]
"""Where an element lies in its file: field numbers and indices, alternately."""


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
    protos.protoc(f"--descriptor_set_out={path}", "--include_source_info")
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
    assert sorted(file.name for file in files) == list(protos.NAMES)
    assert [f"{file.name}: {problem}" for file in files for problem in _lint(file)] == []


def test_requests_and_responses_belong_to_one_rpc(files: list[FileDescriptorProto]) -> None:
    methods = [method for file in files for service in file.service for method in service.method]
    types = [name for method in methods for name in (method.input_type, method.output_type)]
    assert sorted(types) == sorted(set(types))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('package: "fiddler.v2"', "package fiddler.v2 is not its folder, fiddler.v1"),
        ('name: "fiddler/v1/Shape.proto"', "file name Shape.proto is not lower_snake_case"),
        ('syntax: "proto2"', "syntax is not proto3"),
        ("public_dependency: 0", "imports publicly"),
        ('message_type { name: "tensor" }', "tensor is not PascalCase"),
        ('message_type { name: "A" field { name: "numRows" } }', "A.numRows is not lower_snake_case"),
        ('message_type { name: "A" oneof_decl { name: "What" } }', "A.What is not lower_snake_case"),
        ('message_type { name: "A" nested_type { name: "b" } }', "A.b is not PascalCase"),
        ('enum_type { name: "e_num" value { name: "E_NUM_UNSPECIFIED" number: 0 } }', "e_num is not PascalCase"),
        ('enum_type { name: "BigEnum" value { name: "ZERO" number: 0 } }', "BigEnum.ZERO does not begin with BIG_ENUM"),
        ('enum_type { name: "E" value { name: "E_none" number: 0 } }', "E.E_none is not UPPER_SNAKE_CASE"),
        ('enum_type { name: "E" value { name: "E_NONE" number: 0 } }', "E: its first value is not E_UNSPECIFIED = 0"),
        (
            'enum_type { name: "E" value { name: "E_UNSPECIFIED" number: 1 } }',
            "E: its first value is not E_UNSPECIFIED = 0",
        ),
        ('enum_type { name: "E" options { allow_alias: true } }', "E allows aliases"),
        ('service { name: "Experts" }', "Experts does not end in Service"),
        (
            'service { name: "AService" method { name: "Run" input_type: ".fiddler.v1.Tensor" } }',
            "AService.Run does not take RunRequest and return RunResponse",
        ),
        ('message_type { name: "A" field { name: "b" } }', "A.b has no comment"),
        ('enum_type { name: "E" value { name: "E_UNSPECIFIED" number: 0 } }', "E.E_UNSPECIFIED has no comment"),
        ('service { name: "AService" method { name: "Run" } }', "AService.Run has no comment"),
    ],
)
def test_the_rules_are_noticed_when_broken(content: str, problem: str) -> None:
    sound = FileDescriptorProto(name="fiddler/v1/tensor.proto", package="fiddler.v1", syntax="proto3")
    broken = text_format.Parse(content, FileDescriptorProto())
    sound.MergeFrom(broken)
    assert problem in list(_lint(sound))


def _lint(file: FileDescriptorProto) -> Iterator[str]:
    """What buf's STANDARD rules have against a file, as far as a descriptor shows it."""
    folder, _, name = file.name.rpartition("/")
    if file.package != folder.replace("/", "."):
        yield f"package {file.package} is not its folder, {folder.replace('/', '.')}"
    if not _LOWER_SNAKE.fullmatch(name.removesuffix(".proto")):
        yield f"file name {name} is not lower_snake_case"
    if file.syntax != "proto3":
        yield "syntax is not proto3"
    if file.public_dependency or file.weak_dependency:
        yield "imports publicly"
    for message, prefix, _ in _messages(file):
        yield from _lint_message(message, prefix)
    for enum, prefix, _ in _enums(file):
        yield from _lint_enum(enum, prefix)
    for service in file.service:
        yield from _lint_service(service, file.package)
    comments = {tuple(location.path) for location in file.source_code_info.location if location.leading_comments}
    yield from (f"{element} has no comment" for element, path in _elements(file) if path not in comments)


def _lint_message(message: DescriptorProto, prefix: str) -> Iterator[str]:
    if not _PASCAL.fullmatch(message.name):
        yield f"{prefix}{message.name} is not PascalCase"
    # an optional field is a oneof of its own, named after it with an underscore in front
    declared = [field.name for field in message.field]
    declared += [oneof.name for oneof in message.oneof_decl if oneof.name[1:] not in declared]
    for name in declared:
        if not _LOWER_SNAKE.fullmatch(name):
            yield f"{prefix}{message.name}.{name} is not lower_snake_case"


def _lint_enum(enum: EnumDescriptorProto, prefix: str) -> Iterator[str]:
    stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper()
    if not _PASCAL.fullmatch(enum.name):
        yield f"{prefix}{enum.name} is not PascalCase"
    if enum.options.allow_alias:
        yield f"{prefix}{enum.name} allows aliases"
    if [(value.name, value.number) for value in enum.value[:1]] != [(f"{stem}_UNSPECIFIED", 0)]:
        yield f"{prefix}{enum.name}: its first value is not {stem}_UNSPECIFIED = 0"
    for value in enum.value:
        if not value.name.startswith(f"{stem}_"):
            yield f"{prefix}{enum.name}.{value.name} does not begin with {stem}"
        if not _UPPER_SNAKE.fullmatch(value.name):
            yield f"{prefix}{enum.name}.{value.name} is not UPPER_SNAKE_CASE"


def _lint_service(service: ServiceDescriptorProto, package: str) -> Iterator[str]:
    if not (_PASCAL.fullmatch(service.name) and service.name.endswith("Service")):
        yield f"{service.name} does not end in Service"
    for method in service.method:
        if not _PASCAL.fullmatch(method.name):
            yield f"{service.name}.{method.name} is not PascalCase"
        expected = (f".{package}.{method.name}Request", f".{package}.{method.name}Response")
        if (method.input_type, method.output_type) != expected:
            request, response = f"{method.name}Request", f"{method.name}Response"
            yield f"{service.name}.{method.name} does not take {request} and return {response}"


def _messages(file: FileDescriptorProto) -> Iterator[tuple[DescriptorProto, str, Location]]:
    """All messages, those within others too, with what stands before their name and where they lie."""
    waiting: list[tuple[DescriptorProto, str, Location]]
    waiting = [(message, "", (_FILE_MESSAGE, index)) for index, message in enumerate(file.message_type)]
    while waiting:
        message, prefix, location = waiting.pop(0)
        yield message, prefix, location
        for index, nested in enumerate(message.nested_type):
            if nested.options.map_entry:  # protoc's own, for a map field
                continue
            waiting.append((nested, f"{prefix}{message.name}.", (*location, _MESSAGE_NESTED, index)))


def _enums(file: FileDescriptorProto) -> Iterator[tuple[EnumDescriptorProto, str, Location]]:
    for index, enum in enumerate(file.enum_type):
        yield enum, "", (_FILE_ENUM, index)
    for message, prefix, path in _messages(file):
        for index, enum in enumerate(message.enum_type):
            yield enum, f"{prefix}{message.name}.", (*path, _MESSAGE_ENUM, index)


def _elements(file: FileDescriptorProto) -> Iterator[tuple[str, Location]]:
    """Everything that must have a comment."""
    for message, prefix, path in _messages(file):
        yield f"{prefix}{message.name}", path
        for index, field in enumerate(message.field):
            yield f"{prefix}{message.name}.{field.name}", (*path, _MESSAGE_FIELD, index)
        synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
        for index, oneof in enumerate(message.oneof_decl):
            if index not in synthetic:
                yield f"{prefix}{message.name}.{oneof.name}", (*path, _MESSAGE_ONEOF, index)
    for enum, prefix, path in _enums(file):
        yield f"{prefix}{enum.name}", path
        for index, value in enumerate(enum.value):
            yield f"{prefix}{enum.name}.{value.name}", (*path, _ENUM_VALUE, index)
    for position, service in enumerate(file.service):
        yield service.name, (_FILE_SERVICE, position)
        for index, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (_FILE_SERVICE, position, _SERVICE_METHOD, index)
