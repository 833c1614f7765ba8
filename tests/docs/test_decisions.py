"""docs/decisions against its index, and the numbers by which other files name decisions."""

import datetime
import re
from pathlib import Path

from tests.support.pages import ROOT, code_files, hand_written, text_of

FOLDER = ROOT / "docs" / "decisions"
RECORDS = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")


def test_numbers_have_no_gaps() -> None:
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))


def test_every_record_has_its_number_a_status_and_a_date() -> None:
    for path in RECORDS:
        title, blank, status, *_ = path.read_text().splitlines()
        assert re.match(rf"# {int(path.name[:4])}\. \S.*\w`?$", title), path.name
        assert blank == "", path.name
        found = re.fullmatch(r"Status: (accepted|superseded by \d+)\. Date: (\d{4}-\d\d-\d\d)\b.*\.", status)
        assert found, path.name
        datetime.date.fromisoformat(found[2])


def test_the_index_has_a_row_for_every_record_and_no_other() -> None:
    expected = []
    for path in RECORDS:
        title, _, status, *_ = path.read_text().splitlines()
        number, _, text = title.removeprefix("# ").partition(". ")
        found = re.match(r"Status: (.*?)\. Date: (.{10})", status)
        assert found, path.name
        expected.append(f"| {number} | [{text}]({path.name}) | {found[1]} | {found[2]} |")
    rows = [line for line in text_of("docs/decisions/README.md").splitlines() if re.match(r"\| \d", line)]
    assert rows == expected


def test_every_decision_that_is_named_exists() -> None:
    texts = {page: text_of(page) for page in hand_written()}
    texts |= {str(path): path.read_text() for path in code_files() if path != Path(__file__)}
    named = {
        (place, number)
        for place, text in texts.items()
        for mention in re.findall(r"\b[Dd]ecisions? \d+(?: and \d+)?", text)
        for number in map(int, re.findall(r"\d+", mention))
    }
    assert len(named) > 10
    assert {(place, number) for place, number in named if not 1 <= number <= len(RECORDS)} == set()
