"""The dashboards against Grafana's own types, of the version that compose.yaml runs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "grafana"
ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "observability" / "grafana" / "dashboards").glob("*.json"))

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules").is_dir(), reason="tests/interop/grafana is not installed: run `make interop`"
    ),
]


def check(*files: Path) -> subprocess.CompletedProcess[str]:
    command = ["node", str(FOLDER / "check.mjs"), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_dashboards_are_what_grafanas_types_allow() -> None:
    done = check(*DASHBOARDS)
    assert len(DASHBOARDS) == 3
    assert (done.returncode, done.stdout) == (0, "")


def test_the_types_are_of_the_grafana_that_compose_runs() -> None:
    (version,) = re.findall(r"grafana/grafana:([\d.]+)", (ROOT / "compose.yaml").read_text())
    assert json.loads((FOLDER / "package.json").read_text())["devDependencies"]["@grafana/schema"] == version


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("panels", 1, "fieldConfig", "defaults", "unit"), 5),
        (("panels", 1, "options", "graphMode"), "volume"),
        (("panels", 1, "options", "unknown"), True),
        (("panels", 1, "type"), "heatmaps"),
        (("templating", "list", 0, "type"), "data"),
    ],
)
def test_what_grafana_does_not_know_is_found(path: tuple[str | int, ...], value: object, tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "observability/grafana/dashboards/fiddler-routing.json").read_text())
    part = dashboard
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(dashboard))
    done = check(file)
    assert done.returncode == 1
    assert "error TS" in done.stdout
