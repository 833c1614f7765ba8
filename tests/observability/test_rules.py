"""Alerts and recorded series: that each is tested and explained. What they compute is tested by promtool.

promtool runs where it is on PATH; `make compose-test` always runs it, from Prometheus' image.
"""

import re
import shutil
import subprocess
from collections import defaultdict

import pytest
import yaml

from observability.generate.files import ROOT
from observability.generate.vllm_names import VLLM_NAMES
from tests.compose.dashboards import metrics_of
from tests.observability.test_dashboards import DECLARED, OF_THE_PYTHON_CLIENT
from tests.support.rules import ALERTS, FOLDER, RECORDS, promtool_tests

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_every_alert_is_tested_with_its_cause_and_without() -> None:
    outcomes = defaultdict(set)
    for test in promtool_tests():
        for case in test.get("alert_rule_test", ()):
            outcomes[case["alertname"]].add(bool(case.get("exp_alerts")))
    assert outcomes == {name: {True, False} for name in ALERTS}


def test_every_recorded_series_is_tested() -> None:
    expressions = [case["expr"] for test in promtool_tests() for case in test.get("promql_expr_test", ())]
    tested = set().union(*(metrics_of(expression) for expression in expressions))
    assert {name for name in tested if not name.startswith("vllm:")} == RECORDS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_what_its_reader_needs(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"].keys() == {"summary", "description"}
    section = re.search(rf"^### {name}\n\n(.*?)(?=^#|\Z)", OPERATIONS, flags=re.MULTILINE | re.DOTALL)
    assert section, f"docs/operations.md does not say what {name} means"
    assert "What to do" in section[1], name


def test_no_alert_is_explained_that_is_none() -> None:
    assert set(re.findall(r"^### (Fiddler\w+)$", OPERATIONS, flags=re.MULTILINE)) == ALERTS.keys()


@pytest.mark.parametrize("expression", [*RECORDS.values(), *(alert["expr"] for alert in ALERTS.values())])
def test_rules_name_what_is_declared_or_recorded(expression: str) -> None:
    for name in metrics_of(expression):
        assert name in DECLARED | RECORDS.keys() or OF_THE_PYTHON_CLIENT.match(name), name


def test_vllms_names_are_made_of_what_is_declared_and_have_the_models_name() -> None:
    (group,) = yaml.safe_load((FOLDER / "rules" / "vllm.yml").read_text())["groups"]
    assert {*VLLM_NAMES} == set().union(*(metrics_of(rule["record"]) for rule in group["rules"]))
    for rule in group["rules"]:
        assert rule["record"].startswith("vllm:")
        assert metrics_of(rule["expr"]) <= DECLARED, rule["record"]
        assert "group_left (model_name)" in rule["expr"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not on PATH; make compose-test runs this too")
def test_promtool_finds_what_is_to_be_found() -> None:
    files = [file.name for file in sorted((FOLDER / "tests").glob("*.yml"))]
    command = ["promtool", "test", "rules", *files]
    done = subprocess.run(command, cwd=FOLDER / "tests", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
