"""The settings of the profile command, each with its flag's help text."""

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
        description='file of prompts, one per line; if its name ends in .jsonl, JSON objects with a "text"'
    )
    out: Path = Field(description="file to write; an existing file is replaced once all prompts are counted")
    max_tokens: int = Field(64, ge=1, description="the most tokens generated after each prompt")
    experts: str | None = Field(
        None, description="address of a running CPU expert service; unset: this process computes the experts"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device that computes all but the experts; auto: cuda if there is one"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads that compute; 0: PyTorch's default, within the CPU quota"
    )
    max_slots: int = Field(8, ge=1, le=1024, description="the most prompts computed at one time")
    max_context: int = Field(
        4096, ge=2, description="the most tokens of a prompt and its continuation; the model's own limit also applies"
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
