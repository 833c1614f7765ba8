"""Flags, then environment, then the TOML file, then defaults; each mistake is reported in one line."""

import os
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from cpu_expert_service.settings import Settings as CpuSettings
from fiddler.settings import ServiceSettings
from gpu_service.settings import RequestLimits
from gpu_service.settings import Settings as GpuSettings


class ToySettings(ServiceSettings):
    """Settings of every kind."""

    model_config = SettingsConfigDict(env_prefix="FIDDLER_TOY_")
    program: ClassVar[str] = "toy"

    listen: str = Field("unix:/run/toy.sock", description="address")
    metrics_port: int = Field(0, description="port")
    num_toys: int = Field(1, description="toys")
    ratio: float = Field(0.5, gt=0, description="share of toys")
    loud: bool = Field(True, description="whether toys make noise")
    colour: Literal["red", "blue"] = Field("red", description="colour of toys")
    box: Path | None = Field(None, description="where toys are kept")


ALL: tuple[type[ServiceSettings], ...] = (ToySettings, CpuSettings, GpuSettings)
any_settings = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.program)
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("FIDDLER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Loads arguments that must be refused, and returns the one line that is printed."""

    def refuse(kind: type[ServiceSettings], *arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            kind.load(arguments)
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith(f"{kind.program}: ")
        return err.removeprefix(f"{kind.program}: ").removesuffix("\n")

    return refuse


def environment_name(kind: type[ServiceSettings], setting: str) -> str:
    return f"{kind.model_config.get('env_prefix')}{setting}".upper()


@any_settings
@pytest.mark.parametrize("sources", list(product([False, True], repeat=3)), ids=str)
def test_flags_go_before_environment_before_file_before_default(
    kind: type[ServiceSettings],
    sources: tuple[bool, bool, bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flag, environment, file = sources
    arguments = ["--model", "m"]
    expected = kind.model_fields["max_message_bytes"].default
    if file:
        (tmp_path / "settings.toml").write_text(f"max_message_bytes = {(expected := 2**17)}")
        arguments += ["--config", str(tmp_path / "settings.toml")]
    if environment:
        monkeypatch.setenv(environment_name(kind, "max_message_bytes"), str(expected := 2**18))
    if flag:
        arguments += ["--max-message-bytes", str(expected := 2**19)]
    assert kind.load(arguments).max_message_bytes == expected


def _toml(values: dict[str, Any]) -> str:
    def literal(value: Any) -> str:
        return str(value).lower() if isinstance(value, (bool, int, float)) else f'"{value}"'

    return "\n".join(f"{name} = {literal(value)}" for name, value in values.items())


VALUES: dict[str, Any] = {
    "model": Path("/models/x"),
    "num_toys": 7,
    "ratio": 0.25,
    "loud": False,
    "colour": "blue",
    "box": Path("/box"),
    "grace_seconds": 0.5,
    "listen": "127.0.0.1:7",
}


@pytest.mark.parametrize("source", ["flags", "environment", "file"])
def test_every_kind_of_setting_can_come_from_every_source(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[str] = []
    if source == "flags":
        flags = {name.replace("_", "-"): value for name, value in VALUES.items() if name != "loud"}
        arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))] + ["--no-loud"]
    elif source == "environment":
        for name, value in VALUES.items():
            monkeypatch.setenv(environment_name(ToySettings, name), str(value))
    else:
        (tmp_path / "toys.toml").write_text(_toml(VALUES))
        arguments = [f"--config={tmp_path}/toys.toml"]
    settings = ToySettings.load(arguments)
    assert {name: getattr(settings, name) for name in VALUES} == VALUES


def test_the_environment_can_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.toml").write_text("num_toys = 2")
    (tmp_path / "b.toml").write_text("num_toys = 3")
    monkeypatch.setenv("FIDDLER_TOY_CONFIG", str(tmp_path / "a.toml"))
    assert ToySettings.load(["--model", "m"]).num_toys == 2
    flags = ["--model", "m", "--config", str(tmp_path / "gone.toml"), "--config", str(tmp_path / "b.toml")]
    assert ToySettings.load(flags).num_toys == 3


def test_the_file_of_one_load_is_forgotten_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "toys.toml").write_text("num_toys = 2")
    assert ToySettings.load(["--model", "m", "--config", str(tmp_path / "toys.toml")]).num_toys == 2
    assert ToySettings(model=Path("m")).num_toys == 1
    assert ToySettings.load(["--model", "m"]).num_toys == 1


def test_the_other_service_s_environment_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIDDLER_GPU_MAX_SLOTS", "2")
    assert CpuSettings.load(["--model", "m"]).max_streams == 8


@any_settings
@pytest.mark.parametrize("arguments", [["--modle", "m"], ["--modle=m"], ["--mod", "m"], ["surplus"]], ids=str)
def test_an_unknown_flag_is_refused(kind: type[ServiceSettings], arguments: list[str], refused: Refused) -> None:
    assert refused(kind, "--model", "m", *arguments) == f"unrecognized arguments: {' '.join(arguments)}"


def test_a_flag_without_a_value_is_refused(refused: Refused) -> None:
    assert refused(ToySettings, "--model", "m", "--num-toys") == "argument --num-toys: expected one argument"


@any_settings
@pytest.mark.parametrize("change", [str.upper, str.lower])
def test_an_unknown_environment_variable_is_refused(
    kind: type[ServiceSettings], change: Callable[[str], str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = change(environment_name(kind, "modle"))
    monkeypatch.setenv(name, "x")
    message = refused(kind, "--model", "m")
    assert message.startswith(f"environment variable {name} is not a setting; known: ")
    assert all(environment_name(kind, setting) in message for setting in kind.model_fields)


def test_a_secret_of_the_environment_is_no_setting(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIDDLER_GPU_TOKENS", "secret")
    GpuSettings.load(["--model", "m"])
    assert refused(GpuSettings, "--model", "m", "--tokens", "secret").startswith("unrecognized arguments")
    monkeypatch.setenv("fiddler_gpu_tokens", "secret")  # which nothing would read
    assert refused(GpuSettings, "--model", "m").startswith("environment variable fiddler_gpu_tokens is not a setting")


def test_limits_of_a_request_are_settings() -> None:
    flags = "--max-tokens-limit 1 --max-n 2 --max-beams 3 --max-stop-strings 4 --max-stop-bytes 5 --max-logprobs 6"
    assert GpuSettings.load(["--model", "m", *flags.split()]).limits == RequestLimits(1, 2, 3, 4, 5, 6)
    assert GpuSettings.load(["--model", "m"]).limits == RequestLimits()


@any_settings
@pytest.mark.parametrize("key", ["modle", "max-message-bytes", "config", "tool"])
def test_an_unknown_key_of_the_file_is_refused(
    kind: type[ServiceSettings], key: str, refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[tool]\nmodel = "m"' if key == "tool" else f'{key} = "x"')
    message = refused(kind, "--model", "m", "--config", str(path))
    assert message.startswith(f"--config: {path}: {key} is not a setting; known: ")
    assert "max_message_bytes" in message


@any_settings
def test_the_model_must_be_named(kind: type[ServiceSettings], refused: Refused) -> None:
    assert refused(kind) == "--model: Field required"


@pytest.mark.parametrize(
    ("kind", "setting", "value", "problem"),
    [
        *((kind, "metrics_port", "70000", "less than or equal to 65535") for kind in (CpuSettings, GpuSettings)),
        *((kind, "metrics_port", "-1", "greater than or equal to 0") for kind in (CpuSettings, GpuSettings)),
        *((kind, "listen", "nowhere", "'nowhere' is not an address; expected HOST:PORT or unix:PATH") for kind in ALL),
        *((kind, "dtype", "int8", "should be 'auto', 'bfloat16' or 'float32'") for kind in ALL),
        (ToySettings, "max_message_bytes", "1", "greater than or equal to 65536"),
        (ToySettings, "max_message_bytes", "2147483648", "less than or equal to 2147483647"),
        (ToySettings, "grace_seconds", "nan", "less than or equal to 3600"),
        (ToySettings, "grace_seconds", "inf", "less than or equal to 3600"),
        (ToySettings, "num_toys", "many", "valid integer"),
        (ToySettings, "num_toys", "", "valid integer"),
        (ToySettings, "num_toys", "1.5", "valid integer"),
        (ToySettings, "ratio", "0", "greater than 0"),
        (ToySettings, "log_level", "chatty", "'debug', 'info', 'warning' or 'error'"),
        (ToySettings, "log_format", "xml", "'auto', 'console' or 'json'"),
        (CpuSettings, "threads", "-1", "greater than or equal to 0"),
        (CpuSettings, "max_rows", "0", "greater than or equal to 1"),
        (CpuSettings, "max_experts_per_row", "0", "greater than or equal to 1"),
        (CpuSettings, "max_streams", "0", "greater than or equal to 1"),
        (GpuSettings, "experts", "unix:", "does not name a socket"),
        (GpuSettings, "device", "tpu", "'auto', 'cpu' or 'cuda'"),
        (GpuSettings, "max_slots", "0", "greater than or equal to 1"),
        (GpuSettings, "kv_memory", "0", "must be \"auto\" or above 0, in GiB, got '0'"),
        (GpuSettings, "kv_memory", "inf", "got 'inf'"),
        (GpuSettings, "kv_memory", "much", "got 'much'"),
        (GpuSettings, "prefill_chunk_alone", "0", "must be \"auto\" or above 0, got '0'"),
        (GpuSettings, "prefill_chunk_alone", "all", "must be \"auto\" or above 0, got 'all'"),
        (GpuSettings, "max_tokens_limit", "0", "greater than or equal to 1"),
        (GpuSettings, "max_n", "0", "greater than or equal to 1"),
        (GpuSettings, "max_beams", "0", "greater than or equal to 1"),
        (GpuSettings, "max_stop_strings", "-1", "greater than or equal to 0"),
        (GpuSettings, "max_stop_bytes", "0", "greater than or equal to 1"),
        (GpuSettings, "max_logprobs", "-1", "greater than or equal to 0"),
        (GpuSettings, "expert_timeout_seconds", "0", "greater than 0"),
        (GpuSettings, "expert_timeout_seconds", "nan", "greater than 0"),
    ],
)
def test_a_bad_value_is_refused_wherever_it_comes_from(
    kind: type[ServiceSettings],
    setting: str,
    value: str,
    problem: str,
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flag = f"--{setting.replace('_', '-')}"
    (tmp_path / "settings.toml").write_text(f'{setting} = "{value}"')
    messages = [
        refused(kind, "--model", "m", f"{flag}={value}"),
        refused(kind, "--model", "m", "--config", str(tmp_path / "settings.toml")),
    ]
    monkeypatch.setenv(environment_name(kind, setting), value)
    messages.append(refused(kind, "--model", "m"))
    for message in messages:
        assert message.startswith(f"{flag}: ")
        assert problem in message


def test_a_bad_boolean_is_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIDDLER_TOY_LOUD", "perhaps")
    assert refused(ToySettings, "--model", "m").startswith("--loud: Input should be a valid boolean")


def test_several_mistakes_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        CpuSettings.load(["--threads", "many", "--max-rows", "0"])
    assert caught.value.code == 2
    reported = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert sorted(reported) == ["--max-rows", "--model", "--threads"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "--config: cannot read {path}: No such file or directory"),
        (b"model = \n", "--config: {path} is not TOML: Invalid value (at line 1, column 9)"),
        (b'model = "\xff"', "--config: {path} is not TOML: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_an_unreadable_file_is_refused(content: bytes | None, problem: str, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    assert refused(ToySettings, "--config", str(path)).startswith(problem.format(path=path))


def test_a_fault_of_the_program_is_not_taken_for_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("planted")

    monkeypatch.setattr(ToySettings, "_refuse_unknown_environment", fail)
    with pytest.raises(ValueError, match=r"^planted$"):
        ToySettings.load(["--model", "/nowhere"])


def test_a_directory_is_no_file(refused: Refused, tmp_path: Path) -> None:
    assert refused(ToySettings, "--config", str(tmp_path)) == f"--config: cannot read {tmp_path}: Is a directory"


def test_what_can_be_opened_and_is_no_file_is_refused(refused: Refused) -> None:
    assert refused(ToySettings, "--model", "m", "--config", "/dev/null") == "--config: /dev/null is not a file"


@any_settings
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_describes_every_setting(
    kind: type[ServiceSettings], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        kind.load([flag])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    text = re.sub(r"\s+", " ", out)
    assert f"usage: python -m {kind.program}" in text
    for name, field in kind.model_fields.items():
        assert re.search(rf" --{name.replace('_', '-')}\b", text), name
        assert field.description, name
        assert field.description in text, name
