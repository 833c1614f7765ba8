"""`python -m tools.settings_page`: writes docs/settings.md from the settings of the services and of the gateway.

`make settings` runs it; tests/test_compose_files.py compares the committed page with what it writes.
"""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cpu_expert_service.settings import Settings as CpuSettings
from fiddler.settings import CommandSettings
from gpu_service.settings import Settings as GpuSettings
from http_gateway.settings import Settings as GatewaySettings
from tools.command_line import run

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
_HEAD = """# Settings

A setting is given as a flag, as an environment variable, or as a line of the TOML file that `--config` names; a flag
overrides the environment, which overrides the file. In the file, a setting has its flag's name with underscores:
`max_slots = 8`. compose.yaml passes the environment variables to the containers. `make settings` generates this page.
"""
_SECRETS = {
    "FIDDLER_GPU_TOKENS": "bearer tokens between commas, added to those of `--tokens-file`; there is no flag",
    "FIDDLER_HTTP_TOKENS": "API keys between commas, added to those of `--tokens-file`; there is no flag",
}


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_section(kind) for kind in (GpuSettings, CpuSettings, GatewaySettings))


def _section(kind: type[CommandSettings]) -> str:
    prefix = str(kind.model_config.get("env_prefix"))
    lines = [f"\n## {kind.program}\n", "| flag | environment | default | meaning |", "|---|---|---|---|"]
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


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    run(main, __doc__)
