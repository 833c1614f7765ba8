"""The settings of the gateway, each with its flag's help text."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from fiddler import rpc
from fiddler.settings import CommandSettings

NONE = "none"
TOKENS_VARIABLE = "FIDDLER_HTTP_TOKENS"


class Settings(CommandSettings):
    """Serves OpenAI's API and a page over HTTP. Settings come from flags, FIDDLER_HTTP_*, and the --config file."""

    model_config = SettingsConfigDict(env_prefix="FIDDLER_HTTP_")
    program: ClassVar[str] = "http_gateway"
    secrets: ClassVar[frozenset[str]] = frozenset({TOKENS_VARIABLE})

    target: str = Field("127.0.0.1:50051", description="address of the GPU service: HOST:PORT or unix:PATH")
    listen: str = Field("127.0.0.1:8000", description="address to serve on: HOST:PORT")
    tokens_file: Path | None = Field(
        None,
        description="file with one API key per line; requests need one of them, which is passed on to the GPU service. "
        "Unset: any key is passed on, and the GPU service decides. SIGHUP reloads it",
    )
    tls_cert: Path | None = Field(None, description="PEM file with the certificate chain to serve HTTPS with")
    tls_key: Path | None = Field(None, description="PEM file with the private key of --tls-cert")
    target_tls: bool = Field(False, description="call the GPU service over TLS, trusting public authorities")
    target_tls_ca: Path | None = Field(
        None, description="call the GPU service over TLS, trusting the authorities in this PEM file"
    )
    target_tls_cert: Path | None = Field(
        None, description="PEM file with the certificate to present to the GPU service"
    )
    target_tls_key: Path | None = Field(None, description="PEM file with the private key of --target-tls-cert")
    target_tls_server_name: str | None = Field(
        None, description="name that the GPU service's certificate must carry, if it differs from --target's"
    )
    served_model_name: str = Field("", description="name of the model in the API; empty: its directory's name")
    gpu_metrics: str = Field(
        "127.0.0.1:9100", description="URL of the GPU service's /metrics, or HOST:PORT, for /experts; none: not read"
    )
    cpu_metrics: str = Field("127.0.0.1:9101", description="the same of the CPU expert service; none: not read")
    cors_origins: str = Field(
        "", description="origins whose pages may call the API, separated by commas, or *; empty: only the page itself"
    )
    allowed_hosts: str = Field(
        "",
        description="host names by which callers may reach the gateway, separated by commas, besides localhost, "
        "addresses and the host of --listen, or * for any: a page could otherwise call through a name of its own",
    )
    max_request_bytes: int = Field(16 * 2**20, ge=1024, le=2**30, description="largest body of a request, in bytes")
    max_prompts: int = Field(256, ge=1, le=65536, description="most prompts in one request to /v1/completions")
    request_timeout_seconds: float = Field(
        0.0, ge=0, le=1e6, description="longest time that a request may take, in seconds; 0: no limit"
    )
    grace_seconds: float = Field(
        5.0, ge=0, le=3600, description="how long running requests may continue after SIGTERM, in seconds"
    )

    @field_validator("target")
    @classmethod
    def _target_is_an_address(cls, value: str) -> str:
        return rpc.check_address(value)

    @field_validator("listen")
    @classmethod
    def _listen_is_a_host_and_port(cls, value: str) -> str:
        if value.startswith("unix:"):
            raise ValueError(f"{value!r} is a socket; expected HOST:PORT")
        return rpc.check_address(value)

    @property
    def hosts(self) -> frozenset[str] | None:
        """The names of --allowed-hosts and the host of --listen, in lower case; None: any name will do."""
        names = {name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip()}
        if "*" in names:
            return None
        return frozenset(names | {self.listen.rpartition(":")[0].lower()})

    @property
    def origins(self) -> list[str]:
        """The origins that may call from a browser."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]
