"""The settings of the GPU service, each with its flag's help text."""

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from fiddler import rpc
from fiddler.convert.recipe import DenseFormat
from fiddler.settings import ServiceSettings
from gpu_service.gpu_experts.memory_budget import parse_budget
from gpu_service.placement.policies import POLICIES

if TYPE_CHECKING:
    PolicyName: TypeAlias = str
else:
    PolicyName = Literal[tuple(POLICIES)]  # so that --help, docs/settings.md and the error for another name list them


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds on one request, in addition to the model's context and vocabulary."""

    max_tokens: int | None = None
    """None: as many as the context leaves room for."""
    max_n: int = 16
    max_beams: int = 16
    max_stop_strings: int = 16
    max_stop_bytes: int = 1024
    """Of one stop string, in UTF-8."""
    max_logprobs: int = 20
    """Alternatives at each token."""
    max_constraint_bytes: int = 65536
    """Of a constraint, in UTF-8."""


_DEFAULT_LIMITS = RequestLimits()


class Settings(ServiceSettings):
    """Generates text. Settings come from flags, FIDDLER_GPU_*, and the --config file."""

    model_config = SettingsConfigDict(env_prefix="FIDDLER_GPU_")
    program: ClassVar[str] = "gpu_service"
    secrets: ClassVar[frozenset[str]] = frozenset({"FIDDLER_GPU_TOKENS"})

    listen: str = Field("127.0.0.1:50051", description="address to serve on: HOST:PORT or unix:PATH")
    metrics_port: int = Field(9100, ge=0, le=65535, description="port that /metrics is served on; 0 serves none")
    experts: str = Field("unix:/run/fiddler/experts.sock", description="address of the CPU expert service")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device that computes all but the experts; auto: cuda if there is one"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads that compute; 0: PyTorch's default, within the CPU quota"
    )
    dense_format: DenseFormat = Field(
        "auto",
        description="what linear layers outside the experts are kept in; int8, int4: codes of 8 or 4 bits, made when"
        " the model is loaded, or the codes that the checkpoint has if they have no more bits; bfloat16: plain numbers"
        " of --dtype; auto: the codes that the checkpoint has if the CPU multiplies from them, else plain numbers",
    )
    max_slots: int = Field(
        16,
        ge=1,
        le=1024,
        description="the most sequences computed at one time; each generation or beam of a request is one",
    )
    kv_memory: float | Literal["auto"] = Field(
        "auto",
        description="memory for keys and values, in GiB, shared by the requests computed at one time; auto: a quarter"
        " of the free memory, and no more than --max-slots sequences of --max-context tokens need",
    )
    max_context: int | Literal["auto"] = Field(
        "auto",
        description="the most tokens of a prompt and its continuation, within the model's own limit; auto: that limit,"
        " as far as the memory for keys and values allows",
    )
    max_waiting: int = Field(256, ge=0, description="the most requests that wait for a slot")
    prefill_chunk: int = Field(
        512,
        ge=1,
        description="the most tokens of a step that computes pieces of prompts, next tokens of others included,"
        " as far as a message to the CPU expert service holds them",
    )
    prefill_chunk_alone: int | Literal["auto"] = Field(
        "auto",
        description="the same while there is no other request, so that the experts of a long prompt are copied fewer"
        " times; auto: 4096 with a GPU, else --prefill-chunk",
    )
    expert_timeout_seconds: float = Field(
        60.0,
        gt=0,
        description="seconds that the CPU expert service may take for one layer before it counts as lost; once costs"
        " are measured, the time-out is far shorter",
    )
    gpu_expert_memory: str = Field(
        "auto",
        description="device memory for resident experts: auto (what is free), GiB such as 8.5, or a share such as 40%;"
        " 0: none",
    )
    placement: PolicyName = Field(
        "adaptive", description="policy that chooses the experts resident on the device; see docs/placement.md"
    )
    popularity: Path | None = Field(
        None, description="file of how often each expert is chosen; python -m gpu_service.profile writes it"
    )
    save_popularity: Path | None = Field(
        None, description="file to which the service writes its own counts when it stops"
    )
    costs: Path | None = Field(
        None,
        description="file of measured costs, read if it exists, else written; unset: a file in the user's cache",
    )
    recalibrate: bool = Field(False, description="measure the costs again, even if the file has them")
    prefetch: Literal["auto", "on", "off"] = Field(
        "auto", description="copy experts that the next layer is likely to need; auto: if trials show that it pays"
    )

    cuda_graphs: Literal["auto", "off"] = Field(
        "auto",
        description="with a GPU, replay the launches of decode steps as CUDA graphs; auto: if the model's code can be"
        " captured",
    )
    dry_run: bool = Field(
        False,
        description="serve nothing; print what would be served, what would be resident on the device, and how fast it"
        " could be at most, or why the model cannot be served",
    )
    dry_run_format: Literal["text", "json"] = Field(
        "text", description="how --dry-run prints: for people, or one object"
    )
    tls_cert: Path | None = Field(
        None, description="PEM file of the TLS certificate, followed by the certificates up to its root"
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key, without a passphrase")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file of the authorities that sign callers' certificates; callers then need one (mutual TLS)",
    )
    tokens_file: Path | None = Field(
        None,
        description="file of bearer tokens, one per line; a caller must present one of them. Read again on SIGHUP."
        " FIDDLER_GPU_TOKENS holds further tokens, separated by commas",
    )
    max_request_bytes: int | Literal["auto"] = Field(
        "auto",
        description="largest message to accept from a caller, in bytes; auto: 4 MiB, or 128 bytes for each token of the"
        " context if that is more, within --max-message-bytes, which bounds messages to the CPU expert service",
    )
    max_tokens_limit: int | None = Field(
        None,
        ge=1,
        description="the most tokens that a request may generate, also if it asks for no number; unset: as many as the"
        " context has room for",
    )
    max_n: int = Field(_DEFAULT_LIMITS.max_n, ge=1, description="the most generations that a request may sample")
    max_beams: int = Field(_DEFAULT_LIMITS.max_beams, ge=1, description="the most beams of a request")
    max_stop_strings: int = Field(
        _DEFAULT_LIMITS.max_stop_strings, ge=0, description="the most stop strings of a request"
    )
    max_stop_bytes: int = Field(
        _DEFAULT_LIMITS.max_stop_bytes, ge=1, description="the longest stop string, in bytes of UTF-8"
    )
    max_logprobs: int = Field(
        _DEFAULT_LIMITS.max_logprobs, ge=0, description="the most alternatives that a request may ask for at each token"
    )
    max_constraint_bytes: int = Field(
        _DEFAULT_LIMITS.max_constraint_bytes,
        ge=0,
        description="the longest schema, regular expression, grammar or list of choices that constrains an output, in"
        " bytes of UTF-8",
    )
    vllm_engine: bool = Field(
        False,
        description="also speak vllm.grpc.engine.VllmEngine at --listen, as which the router SMG calls its workers;"
        " needs the package smg-grpc-proto, which the extra `router` installs",
    )
    metrics_by_expert: Literal["auto", "on", "off"] = Field(
        "auto",
        description="metrics of bands of neighbouring experts, and of each expert of each layer, two series each; auto:"
        " each expert if layers x experts are at most 20000, else the hottest ones of each layer; off: neither",
    )

    traces_endpoint: str | None = Field(
        None,
        description="URL to which spans of requests are sent with OTLP over HTTP, such as"
        " http://127.0.0.1:4318/v1/traces; needs the extra `tracing`; unset: none are made",
    )

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
            max_constraint_bytes=self.max_constraint_bytes,
        )

    @field_validator("traces_endpoint")
    @classmethod
    def _traces_endpoint_is_a_url(cls, value: str | None) -> str | None:
        if value is None or re.fullmatch(r"https?://[^\s/]+(/\S*)?", value):
            return value
        raise ValueError(f"must be the URL of an OTLP endpoint, such as http://127.0.0.1:4318/v1/traces, got {value!r}")

    @field_validator("gpu_expert_memory")
    @classmethod
    def _gpu_expert_memory_is_a_budget(cls, value: str) -> str:
        parse_budget(value)
        return value

    @field_validator("kv_memory", mode="before")
    @classmethod
    def _kv_memory_is_auto_or_gib(cls, value: float | str) -> float | str:
        if value == "auto":
            return value
        with contextlib.suppress(TypeError, ValueError):
            if 0 < float(value) < math.inf:
                return float(value)
        raise ValueError(f'must be "auto" or above 0, in GiB, got {value!r}')

    @field_validator("max_context", mode="before")
    @classmethod
    def _max_context_is_auto_or_tokens(cls, value: int | str) -> int | str:
        if value == "auto":
            return value
        with contextlib.suppress(TypeError, ValueError):
            if int(value) >= 2:
                return int(value)
        raise ValueError(f'must be "auto" or at least 2, got {value!r}')

    @field_validator("max_request_bytes", mode="before")
    @classmethod
    def _max_request_bytes_is_auto_or_bytes(cls, value: int | str) -> int | str:
        if value == "auto":
            return value
        with contextlib.suppress(TypeError, ValueError):
            if 2**16 <= int(value) < 2**31:
                return int(value)
        raise ValueError(f'must be "auto" or 65536 to 2147483647, got {value!r}')

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
