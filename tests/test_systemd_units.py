"""deploy/systemd: units that systemd accepts, whose commands and settings exist."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cpu_expert_service.settings import Settings as CpuSettings
from fiddler.rpc import check_address
from fiddler.settings import CommandSettings
from gpu_service.settings import Settings as GpuSettings
from http_gateway.settings import Settings as GatewaySettings

UNITS = sorted((Path(__file__).parents[1] / "deploy" / "systemd").glob("*.service"))
SETTINGS: dict[str, type[CommandSettings]] = {
    "fiddler-cpu-experts": CpuSettings,
    "fiddler-gpu": GpuSettings,
    "fiddler-http": GatewaySettings,
}
_PYTHON = "/opt/fiddler/bin/python"


def _service(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(unit)
    return parser["Service"]


def test_every_program_has_a_unit_that_starts_it_and_names_its_settings() -> None:
    assert {unit.stem for unit in UNITS} == SETTINGS.keys()
    for unit in UNITS:
        settings = SETTINGS[unit.stem]
        assert _service(unit)["ExecStart"] == f"{_PYTHON} -m {settings.program}"
        prefix = settings.model_config["env_prefix"]
        known = {f"{prefix}{name}".upper() for name in settings.model_fields}
        assert set(re.findall(r"FIDDLER_\w+", unit.read_text())) <= known, unit.name
        assert int(_service(unit)["TimeoutStopSec"]) > settings.model_fields["grace_seconds"].default


def test_the_socket_is_in_the_directory_that_systemd_makes() -> None:
    directory = _service(UNITS[0])["RuntimeDirectory"]
    sockets = {
        settings.model_fields[name].default for settings, name in ((CpuSettings, "listen"), (GpuSettings, "experts"))
    }
    (socket,) = sockets
    assert check_address(socket).startswith(f"unix:/run/{directory}/")
    assert _service(UNITS[0])["RuntimeDirectoryMode"] == "0700"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(_PYTHON, sys.executable))
    command = ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
