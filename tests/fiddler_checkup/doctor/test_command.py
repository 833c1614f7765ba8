"""The command: a line for each finding, JSON, and the exit status."""

import json

import pytest

from fiddler_checkup.doctor import __main__ as doctor
from fiddler_checkup.doctor import memory
from fiddler_checkup.doctor.finding import Finding, ok, problem, warning


def test_this_machine_can_serve(capfd: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json", "--quick"]) == 0
    told = json.loads(capfd.readouterr().out)
    subjects = {finding["subject"] for finding in told["findings"]}
    assert {"versions", "kernel", "cores", "NUMA", "memory", "huge pages", "memlock", "GPU", "Docker"} <= subjects
    assert told["problems"] == 0
    assert "bandwidth" not in subjects


@pytest.mark.parametrize(
    ("finding", "status", "last"),
    [
        (ok("memory", "64 GiB"), 0, "Models can be served here."),
        (warning("memory", "1 GiB", "buy some"), 0, "Models can be served here. 1 warning: each says what helps."),
        (problem("memory", "none", "buy some"), 1, "1 problem: models cannot be served here until that is mended."),
    ],
)
def test_the_status_says_whether_models_can_be_served(
    finding: Finding, status: int, last: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "look", lambda quick: iter([finding]))
    assert doctor.main([]) == status
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == finding.line(11)
    assert lines[-1] == last


def test_without_quick_the_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measure", lambda: memory.Reading(60e9, 2))
    assert "bandwidth" in {finding.subject for finding in doctor.look(quick=False)}
