"""compose.yaml and the Dockerfile agree with the settings and the project. `make compose-test` runs them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpu_expert_service.settings import Settings as CpuSettings
from fiddler.settings import CommandSettings
from gpu_service.settings import Settings as GpuSettings
from http_gateway.settings import Settings as GatewaySettings
from tools.settings_page import PAGE, page

ROOT = Path(__file__).parents[1]
KINDS: dict[str, type[CommandSettings]] = {
    "cpu-expert-service": CpuSettings,
    "gpu-service": GpuSettings,
    "http-gateway": GatewaySettings,
}


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_page_of_settings_is_what_make_settings_writes() -> None:
    assert PAGE.read_text() == page()


@pytest.mark.parametrize("service", KINDS)
def test_every_setting_of_a_service_reaches_its_container(service: str, compose: Any) -> None:
    kind = KINDS[service]
    prefix = str(kind.model_config.get("env_prefix"))
    assert set(compose["services"][service]["environment"]) == {(prefix + name).upper() for name in kind.model_fields}


def test_images_have_the_projects_version_and_others_are_pinned(compose: Any, project: Any) -> None:
    for name, service in compose["services"].items():
        tag = service["image"].partition(":")[2]
        if "build" in service:
            assert tag == f"${{FIDDLER_VERSION:-{project['version']}}}", name
        else:
            assert re.fullmatch(r"\d+\.\d+\.\d+", tag), name


def test_ports_are_published_on_the_loopback_interface_unless_told_otherwise(compose: Any) -> None:
    for service in compose["services"].values():
        assert service["ports"]
        assert all(port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:") for port in service["ports"])


def test_every_service_is_confined(compose: Any) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"].partition(":")[0] not in ("", "0", "root"), name


def test_compose_and_the_dockerfile_agree_on_prometheus(compose: Any, dockerfile: str) -> None:
    image = compose["services"]["prometheus"]["build"]["args"]["PROMETHEUS_IMAGE"]
    assert f"ARG PROMETHEUS_IMAGE={image}\n" in dockerfile


@pytest.mark.parametrize(
    ("requirements", "modules"),
    [
        ("requirements-cpu", "cpu_expert_service.server, client.health"),
        ("requirements-gpu", "gpu_service.server, client.health"),
        ("requirements-http", "http_gateway.server"),
    ],
)
def test_no_program_needs_what_its_image_leaves_out(
    requirements: str, modules: str, dockerfile: str, project: Any
) -> None:
    match = re.search(rf"grep -vE '\^\(([a-z|-]+)\)\\b'[\s\\]+/requirements.txt > /{requirements}.txt", dockerfile)
    assert match
    left_out = match[1].split("|")
    assert set(left_out) < {re.split(r"[<>=]", dependency)[0] for dependency in project["dependencies"]}
    code = f"import sys; sys.modules.update(dict.fromkeys({left_out}))\nimport {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
