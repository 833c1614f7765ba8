"""Settings of the command that counts."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from fiddler import rpc
from fiddler.settings import ProgramSettings


class Settings(ProgramSettings):
    """Counts which experts a model chooses. Settings come from flags, FIDDLER_PROFILE_*, and the --config file."""

    model_config = SettingsConfigDict(env_prefix="FIDDLER_PROFILE_")
    program: ClassVar[str] = "gpu_service.profile"

    prompts: Path = Field(
        description="file of prompts, one per line; where its name ends in .jsonl, JSON objects with a text"
    )
    out: Path = Field(description="file to write; one that is there is replaced once all is counted")
    max_tokens: int = Field(64, ge=1, description="the most tokens generated after each prompt")
    experts: str | None = Field(
        None, description="address of a running CPU expert service; unset: experts are computed in this process"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where all but the experts is computed; auto: cuda where there is one"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads that compute; 0: PyTorch's own choice, within the CPU quota"
    )
    max_slots: int = Field(8, ge=1, le=1024, description="the most prompts computed at one time")
    max_context: int = Field(
        4096, ge=2, description="the most tokens in a prompt and its continuation; the model's own limit also holds"
    )

    @field_validator("experts")
    @classmethod
    def _experts_is_an_address(cls, value: str | None) -> str | None:
        return None if value is None else rpc.check_address(value)

    @field_validator("out")
    @classmethod
    def _out_can_be_written(cls, value: Path) -> Path:
        if not value.parent.is_dir():
            raise ValueError(f"{value.parent} is not a directory")
        if value.is_dir():
            raise ValueError(f"{value} is a directory")
        return value
