"""compose.yaml and the Dockerfile agree with the settings and the project. `make compose-test` runs them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from cpu_expert_service.settings import Settings as CpuSettings
from fiddler import exposition
from fiddler.checkpoint import Checkpoint
from fiddler.settings import CommandSettings
from fiddler.transport import http
from gpu_service.settings import Settings as GpuSettings
from http_gateway.settings import Settings as GatewaySettings
from tests.compose.by_name import write_cache
from tools.locks import LEFT_OUT, name_of
from tools.settings_page import PAGE, page

ROOT = Path(__file__).parents[1]
KINDS: dict[str, type[CommandSettings]] = {
    "cpu-expert-service": CpuSettings,
    "gpu-service": GpuSettings,
    "http-gateway": GatewaySettings,
}

_MODULES: dict[str, str] = {}
"""The modules of packages whose names differ."""


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


def test_what_is_built_here_is_looked_for_in_no_registry(compose: Any) -> None:
    """Else a first `docker compose up` warns of each image before it builds it."""
    built = {name: service for name, service in compose["services"].items() if "build" in service}
    assert {*KINDS, "prometheus"} <= built.keys()
    assert {name: service.get("pull_policy") for name, service in built.items()} == dict.fromkeys(built, "never")


@pytest.mark.parametrize("service", KINDS)
def test_every_setting_of_a_service_reaches_its_container(service: str, compose: Any) -> None:
    kind = KINDS[service]
    prefix = str(kind.model_config.get("env_prefix"))
    assert set(compose["services"][service]["environment"]) == {(prefix + name).upper() for name in kind.model_fields}


def test_images_have_the_projects_version_and_others_are_pinned(compose: Any, project: Any) -> None:
    for name, service in compose["services"].items():
        tag = service["image"].removesuffix("}").rpartition(":")[2]
        if "build" in service:
            tag = service["image"].partition(":")[2]
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


@pytest.mark.parametrize(("serving", "status"), [(True, 0), (False, 1)])
def test_health_checks_start_no_python_and_know_whether_a_service_serves(
    compose: Any, serving: bool, status: int
) -> None:
    server = http.Server("127.0.0.1", 0, exposition.application(CollectorRegistry(), lambda: serving))
    server.start()
    for name, port in {"cpu-expert-service": 9101, "gpu-service": 9100, "http-gateway": 8000}.items():
        kind, shell, option, script = compose["services"][name]["healthcheck"]["test"]
        assert (kind, shell, option, script.count(f"/{port} ")) == ("CMD", "bash", "-c", 1)
        script = script.replace("$$", "$").replace(f"/{port} ", f"/{server.server_port} ")
        assert subprocess.run([shell, option, script], check=False, timeout=60).returncode == status
    server.shutdown()
    server.server_close()


def test_compose_and_the_dockerfile_agree_on_prometheus(compose: Any, dockerfile: str) -> None:
    image = compose["services"]["prometheus"]["build"]["args"]["PROMETHEUS_IMAGE"].partition(":-")[2].removesuffix("}")
    assert f"ARG PROMETHEUS_IMAGE={image}\n" in dockerfile


@pytest.mark.parametrize(
    ("image", "modules"),
    [
        ("cpu-expert-service", "cpu_expert_service.server, client.health"),
        ("gpu-service", "gpu_service.server, client.health"),
        ("http-gateway", "http_gateway.server"),
    ],
)
def test_no_program_needs_what_its_image_leaves_out(image: str, modules: str, project: Any) -> None:
    left_out = sorted(LEFT_OUT[image])
    assert set(left_out) < {name_of(dependency) for dependency in project["dependencies"]}
    names = [_MODULES.get(name, name.replace("-", "_")) for name in left_out]
    code = f"import sys; sys.modules.update(dict.fromkeys({names}))\nimport {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_a_model_may_be_named_and_is_found_in_the_mounted_cache(
    compose: Any, dockerfile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cache(tmp_path)
    for image in ("cpu-expert-service", "gpu-service"):
        service = compose["services"][image]
        assert [value for name, value in service["environment"].items() if name.endswith("_MODEL")] == [
            "${FIDDLER_MODEL:-/model}"
        ]
        (mount,) = (each for each in service["volumes"] if isinstance(each, str))
        source, target, mode = mount.rsplit(":", 2)
        assert mode == "ro"
        # the rest is the name of a volume, or the folder in HF_HOME
        assert source == "${FIDDLER_MODEL:+${HF_HOME:-${HOME}/.cache/huggingface}/}hub"
        assert f"HF_HUB_CACHE={target} " in dockerfile.partition(f" AS {image}\n")[2].partition("\nFROM ")[0]
    assert "hub" in compose["volumes"]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = CpuSettings.load(["--model", "acme/tiny"])
    assert Checkpoint.open(settings.model).name == "acme/tiny"


def test_every_container_has_limits(compose: Any) -> None:
    for name, service in compose["services"].items():
        limits = service["deploy"]["resources"]["limits"]
        assert limits["pids"] == "${PIDS_LIMIT:-1024}", name
        assert service["ulimits"] == {"nofile": {"soft": 16384, "hard": 16384}, "core": 0}, name
        assert re.fullmatch(r"\$\{[A-Z_]+:-[1-9]\d*[mg]\}", limits["memory"]), name


def test_every_public_image_can_be_pinned_by_its_digest(compose: Any, dockerfile: str) -> None:
    names = re.findall(r"\$\{([A-Z]+_IMAGE):-([^}]+)\}", (ROOT / "compose.yaml").read_text())
    assert {name for name, _ in names} == {"PYTHON_IMAGE", "PROMETHEUS_IMAGE", "GRAFANA_IMAGE"}
    for name, default in names:
        assert name == "GRAFANA_IMAGE" or f"ARG {name}={default}\n" in dockerfile
    for service in compose["services"].values():
        if "build" in service:
            assert "PYTHON_IMAGE" in service["build"]["args"]


def test_what_the_images_install_is_checked_by_its_hash(dockerfile: str) -> None:
    installs = re.findall(r"(?:pip install|install) --quiet([^\n]*)", dockerfile)
    hashed = [install for install in installs if "--require-hashes" in install]
    own_wheel = [install for install in installs if "--no-deps /wheels/" in install]
    assert len(hashed) == 3
    assert len(own_wheel) == 3
    assert {*installs} - {*hashed} - {*own_wheel} == {'" \\'}  # the variable of the next two
    assert re.findall(r"\$pip ([^\n]*?) \\\n", dockerfile) == [
        '--no-deps --index-url "$TORCH_INDEX" "$TORCH"',
        "--require-hashes --requirement /requirements.lock",
        '"$TORCH"',
    ]
    assert "--extra-index-url" not in dockerfile


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    copied = {Path(source).parts[0] for words in lines if not words[0].startswith("--from") for source in words}
    assert len(copied) > 10
    assert copied <= allowed
