"""Settings of the CPU expert service."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from fiddler.kernels import native
from fiddler.kernels.native import NativeUnavailableError
from fiddler.settings import ServiceSettings


class Settings(ServiceSettings):
    """Computes the experts that are not on the GPU. Settings come from flags, FIDDLER_CPU_*, and the --config file."""

    model_config = SettingsConfigDict(env_prefix="FIDDLER_CPU_")
    program: ClassVar[str] = "cpu_expert_service"

    listen: str = Field("unix:/run/fiddler/experts.sock", description="address to serve on: unix:PATH or HOST:PORT")
    metrics_port: int = Field(9101, ge=0, le=65535, description="port that /metrics is served on; 0 serves none")
    threads: int = Field(
        0, ge=0, le=1024, description="threads that compute; 0: one for each CPU of --cpus, within the CPU quota"
    )
    cpus: str = Field("", description="CPUs to pin threads to, such as 0-3,8; empty: all that this process may use")
    kernel: str = Field(
        "auto",
        description="what computes experts; auto: the fastest on this machine; pytorch; or a tier of the native "
        "kernels, such as avx2",
    )
    weights: Literal["mmap", "ram"] = Field(
        "mmap", description="mmap: read experts from the page cache; ram: copy them into memory, in huge pages"
    )
    max_rows: int = Field(16384, ge=1, description="most rows in one request")
    max_experts_per_row: int = Field(64, ge=1, description="most experts per row in one request")
    max_streams: int = Field(8, ge=1, le=1024, description="most streams open at a time")
    shared_memory_mib: int = Field(
        64,
        ge=0,
        le=4096,
        description="MiB of memory that each stream shares with a caller on this host, for its messages; 0: all go over"
        " the socket",
    )
    reflection: bool = Field(False, description="describe the protocol to callers that ask, by gRPC server reflection")
    prefault: bool = Field(True, description="read all experts into memory before serving")

    @field_validator("kernel")
    @classmethod
    def _kernel_is_known(cls, value: str) -> str:
        try:
            known = ("auto", "pytorch", *native.tiers())
        except NativeUnavailableError:
            return value  # a start reports why a tier cannot be had
        if value not in known:
            raise ValueError(f"{value!r} is not a kernel; known: {', '.join(known)}")
        return value
