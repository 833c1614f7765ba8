"""The chart and the kustomizations are valid, and say the same. `make kubernetes-test` installs what renders them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
PYTHON = FOLDER / ".venv" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="what renders the manifests is not installed")


@pytest.fixture(scope="module")
def rendered() -> Any:
    command = [PYTHON, FOLDER / "render.py"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


def _by_name(docs: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Without the namespace, which Helm leaves to its own command line."""
    found = {}
    for doc in docs:
        metadata = {key: value for key, value in doc["metadata"].items() if key != "namespace"}
        for subject in doc.get("subjects", ()):
            subject.pop("namespace", None)
        found[doc["kind"], metadata["name"]] = {**doc, "metadata": metadata}
    return found


def _containers(docs: list[dict[str, Any]]) -> dict[str, Any]:
    pod = _by_name(docs)["StatefulSet", "fiddler"]["spec"]["template"]["spec"]
    return {each["name"]: each for each in (*pod["initContainers"], *pod["containers"])}


def test_all_fit_kubernetes_schemas(rendered: Any) -> None:
    assert rendered["problems"] == []
    assert rendered["lint"] == []


def test_the_chart_says_what_the_base_says(rendered: Any) -> None:
    assert _by_name(rendered["charts"]["base"]) == _by_name(rendered["overlays"]["base"])


@pytest.mark.parametrize("name", ["gpu", "router"])
def test_the_charts_values_are_what_the_overlays_are(rendered: Any, name: str) -> None:
    chart, overlay = _by_name(rendered["charts"][name]), _by_name(rendered["overlays"][name])
    assert chart.keys() == overlay.keys()
    for key, doc in overlay.items():
        if key[0] == "StatefulSet":
            assert _unordered(_containers(rendered["charts"][name])) == _unordered(_containers([doc]))
        elif key[0] != "HorizontalPodAutoscaler":  # the chart's fewest pairs are its replicas
            assert chart[key] == doc


def _unordered(containers: dict[str, Any]) -> dict[str, Any]:
    """The environment by name: kustomize puts what it adds first."""
    return {
        name: {**each, "env": {entry["name"]: entry["value"] for entry in each.get("env", ())}}
        for name, each in containers.items()
    }


def test_values_reach_their_places(rendered: Any) -> None:
    docs = rendered["charts"]["settings"]
    containers, pod = _containers(docs), _by_name(docs)["StatefulSet", "fiddler"]["spec"]["template"]["spec"]
    assert containers["gpu-service"]["image"] == "registry.example/fiddler-gpu-service:1.2.3"
    assert {"name": "FIDDLER_GPU_MAX_CONTEXT", "value": "8192"} in containers["gpu-service"]["env"]
    assert {"name": "FIDDLER_CPU_WEIGHTS", "value": "ram"} in containers["cpu-expert-service"]["env"]
    assert containers["gpu-service"]["resources"]["limits"] == {"memory": "16Gi"}
    assert containers["cpu-expert-service"]["resources"]["limits"] == {"memory": "96Gi"}
    assert pod["nodeSelector"] == {"kind": "large"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "mixtral", "readOnly": True}
    assert {kind for kind, _ in _by_name(rendered["charts"]["plain"])} == {"StatefulSet", "Service"}
