"""Renders deploy/kubernetes with Helm and kustomize, in an environment of its own: render.py prints one JSON object."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import yaml
from kubernetes_validate import utils

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
CHART = FOLDER / "chart"
VERSION = "1.33"
VALUES: dict[str, dict[str, Any]] = {
    "base": {},
    "gpu": {"gpus": 1},
    "router": {"router": {"enabled": True}, "replicas": 2},
    "plain": {"podMonitor": {"enabled": False}, "autoscaling": {"enabled": False}},
    "settings": {
        "image": {"registry": "registry.example/", "tag": "1.2.3"},
        "model": {"claim": "mixtral"},
        "gpuService": {"env": {"FIDDLER_GPU_MAX_CONTEXT": 8192}, "memory": "16Gi"},
        "cpuExpertService": {"env": {"FIDDLER_CPU_WEIGHTS": "ram"}, "memory": "96Gi"},
        "nodeSelector": {"kind": "large"},
    },
}


def main() -> None:
    """Prints what both render, what lint says, and what does not fit Kubernetes' schemas."""
    charts = {name: _chart(values) for name, values in VALUES.items()}
    overlays = {name: _kustomize(name) for name in ("base", "gpu", "router")}
    problems = [
        problem for docs in (*charts.values(), *overlays.values()) for doc in docs if (problem := _problem(doc))
    ]
    lint = helm_python.lint(str(CHART))["errors"]
    json.dump({"charts": charts, "overlays": overlays, "problems": problems, "lint": lint}, sys.stdout)


def _chart(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm_python.Chart.load(str(CHART)) as chart:
        rendered = chart.render(values, name="fiddler", namespace="fiddler")
    return [doc for text in rendered.values() for doc in yaml.safe_load_all(text) if doc]


def _kustomize(name: str) -> list[dict[str, Any]]:
    kubectl = Path(sys.executable).parent / "kubectl"
    command = [kubectl, "kustomize", FOLDER / "kustomize" / name]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return [doc for doc in yaml.safe_load_all(done.stdout) if doc]


def _problem(doc: dict[str, Any]) -> str:
    if doc["kind"] == "PodMonitor":  # the Prometheus Operator's, of which there is no schema
        return ""
    try:
        utils.validate(doc, VERSION, strict=True)
    except Exception as error:
        return f"{doc['kind']}/{doc['metadata']['name']}: {error}"
    return ""


if __name__ == "__main__":
    main()
