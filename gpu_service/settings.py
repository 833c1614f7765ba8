"""Settings of the GPU service."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from fiddler import rpc
from fiddler.settings import ServiceSettings
from gpu_service.gpu_experts.memory_budget import parse_budget
from gpu_service.placement.policies import POLICIES

if TYPE_CHECKING:
    PolicyName: TypeAlias = str
else:
    PolicyName = Literal[tuple(POLICIES)]  # so that --help, docs/settings.md and the error for another name list them


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds on one request, besides those of the model's own context and vocabulary."""

    max_tokens: int | None = None
    """None: what the context leaves room for."""
    max_n: int = 16
    max_beams: int = 16
    max_stop_strings: int = 16
    max_stop_bytes: int = 1024
    """Of one stop string, in UTF-8."""
    max_logprobs: int = 20
    """Alternatives at each place."""


class Settings(ServiceSettings):
    """Generates text. Settings come from flags, FIDDLER_GPU_*, and the --config file."""

    model_config = SettingsConfigDict(env_prefix="FIDDLER_GPU_")
    program: ClassVar[str] = "gpu_service"
    secrets: ClassVar[frozenset[str]] = frozenset({"FIDDLER_GPU_TOKENS"})

    listen: str = Field("127.0.0.1:50051", description="address to serve on: HOST:PORT or unix:PATH")
    metrics_port: int = Field(9100, ge=0, le=65535, description="port that /metrics is served on; 0 serves none")
    experts: str = Field("unix:/run/fiddler/experts.sock", description="address of the CPU expert service")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where all but the experts is computed; auto: cuda where there is one"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads that compute; 0: PyTorch's own choice, within the CPU quota"
    )
    max_slots: int = Field(
        16,
        ge=1,
        le=1024,
        description="the most sequences computed at one time: each generation or beam of a request is one",
    )
    kv_memory: float | Literal["auto"] = Field(
        "auto",
        description="memory for keys and values, in GiB, which the requests computed at one time share; auto: a quarter"
        " of what is free, and no more than --max-slots of --max-context tokens take",
    )
    max_context: int = Field(
        4096, ge=2, description="the most tokens in a prompt and its continuation; the model's own limit also holds"
    )
    max_waiting: int = Field(256, ge=0, description="the most requests that wait for a slot")
    prefill_chunk: int = Field(
        512,
        ge=1,
        description="the most prompt tokens computed between two decode steps; fewer where a message holds fewer",
    )
    prefill_chunk_alone: int | Literal["auto"] = Field(
        "auto",
        description="the same while there is no other request, so that a long prompt has its experts copied fewer "
        "times; auto: 4096 with a GPU, as many as otherwise without",
    )
    expert_timeout_seconds: float = Field(
        60.0,
        gt=0,
        description="the longest that the CPU expert service may take for one layer, in seconds, before it "
        "counts as lost; where its costs are known, far less",
    )
    gpu_expert_memory: str = Field(
        "auto",
        description="device memory for experts: auto takes what is free, else GiB such as 8.5, or a share such as 40%; "
        "0 keeps none there",
    )
    placement: PolicyName = Field(
        "adaptive", description="which experts are resident on the device: see docs/placement.md"
    )
    popularity: Path | None = Field(
        None, description="file made by python -m gpu_service.profile: which experts are chosen how often"
    )
    save_popularity: Path | None = Field(None, description="file to write this process's own counts to when it stops")
    costs: Path | None = Field(
        None,
        description="file of measured costs, read if it is there and written if not; unset: one in the user's cache",
    )
    recalibrate: bool = Field(False, description="measure costs anew, whatever the file says")
    prefetch: Literal["auto", "on", "off"] = Field(
        "auto", description="copy experts that the next layer may want; auto: where trying shows that it pays"
    )

    @field_validator("gpu_expert_memory")
    @classmethod
    def _gpu_expert_memory_is_a_budget(cls, value: str) -> str:
        parse_budget(value)
        return value

    dry_run: bool = Field(
        False,
        description="serve nothing: say what would be served, what of it would lie on the device, and how fast it could"
        " be at most, or why it cannot be served",
    )
    tls_cert: Path | None = Field(
        None, description="PEM file of the certificate to serve TLS with, and of those that lead to its root"
    )
    tls_key: Path | None = Field(None, description="PEM file of its private key, without a passphrase")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of who signs callers' certificates; callers must then have one (mutual TLS)"
    )
    tokens_file: Path | None = Field(
        None,
        description="file of bearer tokens, one in each line, of which a caller must present one; read again on SIGHUP."
        " FIDDLER_GPU_TOKENS holds more, between commas",
    )
    max_tokens_limit: int | None = Field(
        None, ge=1, description="the most tokens that a request may ask for; unset: what the context holds"
    )
    max_n: int = Field(16, ge=1, description="the most generations that a request may sample")
    max_beams: int = Field(16, ge=1, description="the most beams of a request")
    max_stop_strings: int = Field(16, ge=0, description="the most stop strings of a request")
    max_stop_bytes: int = Field(1024, ge=1, description="the longest stop string, in bytes of UTF-8")
    metrics_by_expert: Literal["auto", "on", "off"] = Field(
        "auto",
        description="metrics of each expert of each layer, two series each; auto: where layers x experts are at most"
        " 1024",
    )
    max_logprobs: int = Field(20, ge=0, description="the most alternatives that a request may ask for at each token")

    @property
    def limits(self) -> RequestLimits:
        """What one request may ask for."""
        return RequestLimits(
            max_tokens=self.max_tokens_limit,
            max_n=self.max_n,
            max_beams=self.max_beams,
            max_stop_strings=self.max_stop_strings,
            max_stop_bytes=self.max_stop_bytes,
            max_logprobs=self.max_logprobs,
        )

    @field_validator("kv_memory", mode="before")
    @classmethod
    def _kv_memory_is_auto_or_gib(cls, value: float | str) -> float | str:
        if value == "auto":
            return value
        with contextlib.suppress(TypeError, ValueError):
            if 0 < float(value) < math.inf:
                return float(value)
        raise ValueError(f'must be "auto" or above 0, in GiB, got {value!r}')

    @field_validator("prefill_chunk_alone", mode="before")
    @classmethod
    def _prefill_chunk_alone_is_auto_or_tokens(cls, value: int | str) -> int | str:
        if value == "auto":
            return value
        with contextlib.suppress(TypeError, ValueError):
            if int(value) > 0:
                return int(value)
        raise ValueError(f'must be "auto" or above 0, got {value!r}')

    @field_validator("experts")
    @classmethod
    def _experts_is_an_address(cls, value: str) -> str:
        return rpc.check_address(value)
