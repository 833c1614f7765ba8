"""Prometheus' rules and their promtool tests, read from the files."""

from typing import Any

import yaml

from observability.generate.files import ROOT

FOLDER = ROOT / "observability"


def _rules(name: str) -> list[Any]:
    content = yaml.safe_load((FOLDER / "rules" / name).read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


ALERTS: dict[str, Any] = {rule["alert"]: rule for rule in _rules("alerts.yml")}
RECORDS: dict[str, str] = {rule["record"]: rule["expr"] for rule in _rules("recording.yml")}
"""Queries by name. Of records that differ only in a label, the last one's, which uses the same metrics."""


def promtool_tests() -> list[Any]:
    """All tests in the files that promtool runs."""
    files = sorted((FOLDER / "tests").glob("*.yml"))
    return [test for file in files for test in yaml.safe_load(file.read_text())["tests"]]
