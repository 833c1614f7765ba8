"""Settings of a program: flags, then environment, then a TOML file, then defaults. An undeclared one is refused."""

import os
import sys
import tomllib
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from fiddler import rpc
from fiddler.access import certificates
from fiddler.access.certificates import Certificates
from fiddler.errors import UserError
from fiddler.hub.names import locate

DtypeName = Literal["auto", "bfloat16", "float32"]
ExpertFormatName = Literal["auto", "int8", "int4"]
_config_file: ContextVar[Path | None] = ContextVar("_config_file", default=None)


class CommandSettings(BaseSettings):
    """Settings of every program. A subclass adds its own fields and its environment prefix."""

    model_config = SettingsConfigDict(
        extra="forbid",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,  # so that a wrong flag is reported in one line, as every other mistake is
        nested_model_default_partial_update=False,
    )
    program: ClassVar[str]
    secrets: ClassVar[frozenset[str]] = frozenset()
    """Environment variables of the service that are not settings, because no command line should show them."""

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="format of the log on standard error; auto: console on a terminal, else JSON lines"
    )
    config: Path | None = Field(
        None, description="TOML file with any of these settings, named as the flags but with underscores"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leaves out dotenv and secret files, and puts the TOML file last."""
        path = _config_file.get()
        sources = init_settings, env_settings
        return sources if path is None else (*sources, _toml_source(settings_cls, path))

    @classmethod
    def load(cls, arguments: Sequence[str] | None = None) -> Self:
        """Reads the settings of this process.

        Args:
            arguments: The command line without the program's name; None takes sys.argv's.

        Raises:
            SystemExit: With status 2 and one line on standard error for each setting that is wrong or unknown; with
                status 0 after --help.
        """
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        file = _config_file.set(_config_path(arguments, cls._environment_prefix()))
        try:
            cls._refuse_unknown_environment()
            return cls(_cli_parse_args=arguments, _cli_prog_name=f"python -m {cls.program}")
        except ValidationError as error:
            problems = [f"{_flag(problem['loc'])}: {_message(problem)}" for problem in error.errors()]
        except (SettingsError, UserError) as error:
            problems = [str(error.__cause__ or error).removeprefix("error parsing CLI: ")]
        finally:
            _config_file.reset(file)
        for problem in problems:
            print(f"{cls.program}: {problem}", file=sys.stderr)
        raise SystemExit(2)

    @classmethod
    def _environment_prefix(cls) -> str:
        return str(cls.model_config.get("env_prefix", ""))

    @classmethod
    def _refuse_unknown_environment(cls) -> None:
        prefix = cls._environment_prefix()
        known = {(prefix + name).upper() for name in cls.model_fields}
        ours = {name for name in os.environ if name.upper().startswith(prefix)} - cls.secrets
        unknown = sorted(name for name in ours if name.upper() not in known)
        if unknown:
            raise UserError(f"environment variable {unknown[0]} is not a setting; known: {', '.join(sorted(known))}")


class _CheckpointSettings(BaseModel):
    """Which checkpoint, and how it is computed."""

    model: Path = Field(
        description="directory of a Hugging Face checkpoint: config.json and safetensors; or ORG/NAME[@REVISION] of a"
        " model in the Hugging Face cache; or demo"
    )
    dtype: DtypeName = Field(
        "auto",
        description="dtype to compute in; auto: the checkpoint's own, and float32 for float16, which it holds exactly",
    )

    @field_validator("model")
    @classmethod
    def _model_is_located(cls, value: Path) -> Path:
        return locate(value)


class ProgramSettings(CommandSettings, _CheckpointSettings):
    """Settings of every program that reads a checkpoint."""


class ServiceSettings(ProgramSettings):
    """Settings of both services."""

    expert_format: ExpertFormatName = Field(
        "auto",
        description="format of the experts' weights; auto: as they are stored; int8, int4: the checkpoint is converted"
        " once, into the user's cache, and served from there by both services",
    )
    listen: str = Field(description="address to serve on: HOST:PORT or unix:PATH")
    metrics_host: str = Field("127.0.0.1", description="address to serve /metrics on")
    metrics_port: int = Field(ge=0, le=65535, description="port to serve /metrics on; 0 serves none")
    metrics_tls_cert: Path | None = Field(
        None, description="PEM file of the TLS certificate that /metrics is served with; unset: without TLS"
    )
    metrics_tls_key: Path | None = Field(None, description="PEM file of its private key, without a passphrase")
    max_message_bytes: int = Field(
        64 * 2**20, ge=2**16, le=2**31 - 1, description="largest gRPC message to accept, in bytes"
    )
    grace_seconds: float = Field(
        5.0, ge=0, le=3600, description="how long running calls may continue after SIGTERM, in seconds"
    )

    def metrics_certificates(self) -> Certificates | None:
        """What /metrics is served with; None without TLS.

        Raises:
            UserError: A file is missing or wrong, or only one of the two is given.
        """
        return certificates.given(
            ("--metrics-tls-cert", self.metrics_tls_cert), ("--metrics-tls-key", self.metrics_tls_key)
        )

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, value: str) -> str:
        return rpc.check_address(value)


def _toml_source(settings_class: type[BaseSettings], path: Path) -> TomlConfigSettingsSource:
    """The settings in a file.

    Raises:
        UserError: It cannot be read, is not TOML, or has a key that is not a setting.
    """
    path = path.expanduser()
    try:
        path.open().close()
        if not path.is_file():  # pydantic would take it for an empty one
            raise UserError(f"--config: {path} is not a file")
        source = TomlConfigSettingsSource(settings_class, path)
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config: {path} is not TOML: {error}") from None
    known = settings_class.model_fields.keys() - {"config"}
    unknown = sorted(source.toml_data.keys() - known)
    if unknown:
        raise UserError(f"--config: {path}: {unknown[0]} is not a setting; known: {', '.join(sorted(known))}")
    return source


def _config_path(arguments: list[str], environment_prefix: str) -> Path | None:
    """The file that --config or the environment names; it is read before all settings. The last of two flags counts."""
    for position in reversed(range(len(arguments))):
        argument = arguments[position]
        if argument == "--config" and position + 1 < len(arguments):
            return Path(arguments[position + 1])
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config="))
    name = os.environ.get(f"{environment_prefix}CONFIG")
    return Path(name) if name else None


def _flag(location: tuple[int | str, ...]) -> str:
    return "--" + ".".join(str(part) for part in location).replace("_", "-")


def _message(problem: ErrorDetails) -> str:
    return problem["msg"].removeprefix("Value error, ")
