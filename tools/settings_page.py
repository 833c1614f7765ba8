"""docs/settings.md, written from the services' settings: `make settings`. A test holds the page against them."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cpu_expert_service.settings import Settings as CpuSettings
from fiddler.settings import ServiceSettings
from gpu_service.settings import Settings as GpuSettings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
_HEAD = """# Settings

Each is a flag, an environment variable and a line of the TOML file that `--config` names; the first of these that says
something counts. compose.yaml passes the variables on. This page is made from the services' own declarations by
`make settings`. Names of a TOML file's settings are the flags' with underscores: `max_slots = 8`.
"""
_SECRETS = {"FIDDLER_GPU_TOKENS": "bearer tokens between commas, beside those of `--tokens-file`; there is no flag"}


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_section(kind) for kind in (GpuSettings, CpuSettings))


def _section(kind: type[ServiceSettings]) -> str:
    prefix = str(kind.model_config.get("env_prefix"))
    lines = [f"\n## {kind.program}\n", "| flag | environment | default | what it is |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        lines.append(f"| `{flag}` | `{(prefix + name).upper()}` | {_default(field)} | {_description(field)} |")
    lines += [f"| | `{name}` | unset | {_SECRETS[name]} |" for name in sorted(kind.secrets)]
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "must be set"
    if field.default is None:
        return "unset"
    if field.default == "":
        return "empty"
    if isinstance(field.default, bool):
        return "`on`" if field.default else "`off`"
    return f"`{field.default}`"


def _description(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    text = (field.description or "").replace("|", "\\|")
    return f"{text} ({', '.join(f'`{choice}`' for choice in choices)})" if choices else text


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is not Literal:
        return []
    return [str(choice) for choice in get_args(annotation)]


if __name__ == "__main__":
    PAGE.write_text(page())
