"""deploy/kubernetes runs what compose.yaml runs. `make kubernetes-test` renders it; this needs nothing but YAML."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpu_service.metrics import REQUESTS_WAITING

ROOT = Path(__file__).parents[1]
BASE = ROOT / "deploy" / "kubernetes" / "kustomize" / "base"
ELSEWHERE = {
    "FIDDLER_HTTP_TARGET": "127.0.0.1:50051",
    "FIDDLER_HTTP_GPU_METRICS": "127.0.0.1:9100",
    "FIDDLER_HTTP_CPU_METRICS": "127.0.0.1:9101",
}
"""Settings that differ because the containers of a pod share their addresses."""


def _document(name: str, kind: str) -> Any:
    documents = [each for each in yaml.safe_load_all((BASE / name).read_text()) if each["kind"] == kind]
    return documents[0]


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


@pytest.fixture(scope="module")
def pod() -> Any:
    return _document("pair.yaml", "StatefulSet")["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def containers(pod: Any) -> dict[str, Any]:
    found = {each["name"]: each for each in (*pod["initContainers"], *pod["containers"])}
    return {name: found[name] for name in ("cpu-expert-service", "gpu-service", "http-gateway")}


def _default(text: str) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_images_and_settings_are_those_of_compose(compose: Any, containers: dict[str, Any]) -> None:
    for name, container in containers.items():
        service = compose[name]
        assert container["image"] == _default(service["image"])
        env = {each["name"]: each["value"] for each in container["env"]}
        set_there = {key: _default(value) for key, value in service["environment"].items() if value is not None}
        set_there = {key: value for key, value in set_there.items() if value != "auto"}  # what is so anyway
        assert env.pop("FIDDLER_HTTP_ALLOWED_HOSTS", None) is None or name == "http-gateway"
        assert env == {**set_there, **{key: value for key, value in ELSEWHERE.items() if key in set_there}}


def test_ports_memory_and_time_to_stop_are_those_of_compose(compose: Any, containers: dict[str, Any], pod: Any) -> None:
    for name, container in containers.items():
        published = {port.rpartition(":")[2] for port in compose[name]["ports"]}
        assert {str(port["containerPort"]) for port in container["ports"]} == published
        memory = compose[name]["deploy"]["resources"]["limits"]["memory"]
        assert container["resources"]["limits"]["memory"] == _default(memory).replace("g", "Gi")
        assert f"{pod['terminationGracePeriodSeconds']}s" == compose[name]["stop_grace_period"]


def test_what_is_mounted_is_what_compose_mounts(compose: Any, containers: dict[str, Any], pod: Any) -> None:
    kinds = {volume["name"]: next(key for key in volume if key != "name") for volume in pod["volumes"]}
    for name, container in containers.items():
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        # the Hugging Face cache of the host has no place there: the checkpoint is a volume
        volumes = [volume for volume in compose[name].get("volumes", ()) if isinstance(volume, dict)]
        paths = {volume["target"] for volume in volumes} | {"/tmp"}
        assert {path.replace("/run/fiddler", "/run") for path in paths} == set(mounts)
        assert all(mounts[path].get("readOnly") for path in mounts if path == "/model")
    assert kinds.pop("model") == "persistentVolumeClaim"
    assert kinds == dict.fromkeys(("run", "tmp", "costs", "converted"), "emptyDir")
    sockets = next(volume for volume in pod["volumes"] if volume["name"] == "run")["emptyDir"]
    assert sockets == {"medium": "Memory", "sizeLimit": "192Mi"}
    assert "size=${SHARED_MEMORY:-192m}" in (ROOT / "compose.yaml").read_text()


def test_every_container_is_confined_as_in_compose(pod: Any) -> None:
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["runAsNonRoot"]) == (10001, 10001, True)
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_health_is_asked_for_as_compose_asks(compose: Any, containers: dict[str, Any]) -> None:
    experts = containers["cpu-expert-service"]
    for probe in ("startupProbe", "livenessProbe"):
        assert experts[probe]["httpGet"] == {"path": "/health", "port": "cpu-metrics"}
    for name, port in {"cpu-expert-service": 9101, "http-gateway": 8000}.items():
        command = compose[name]["healthcheck"]["test"][-1]
        assert f"/{port} " in command
        assert "GET /health" in command
    assert experts["restartPolicy"] == "Always", "the GPU service starts once it is ready, as in compose"
    service = containers["gpu-service"]
    assert service["readinessProbe"]["grpc"] == service["startupProbe"]["grpc"] == {"port": 50051}
    assert containers["http-gateway"]["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}


def test_it_scales_on_a_metric_that_there_is_and_finds_every_metric(containers: dict[str, Any]) -> None:
    (metric,) = _document("autoscaling.yaml", "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == REQUESTS_WAITING.name
    ports = {port["name"] for container in containers.values() for port in container["ports"]}
    endpoints = {each["port"] for each in _document("monitoring.yaml", "PodMonitor")["spec"]["podMetricsEndpoints"]}
    assert endpoints == ports - {"grpc"}
