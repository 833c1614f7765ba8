"""What one look at the machine found."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How good a finding is."""

    OK = "ok"
    NOTE = "note"
    """Neither good nor bad, such as a GPU that is not there."""
    WARNING = "warning"
    """Serving works, but slower than it could, or not with all of its parts."""
    PROBLEM = "problem"
    """Serving does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: What was looked at, e.g. "memory".
        level: How good it is.
        text: What was found.
        advice: What to do, if anything.
    """

    subject: str
    level: Level
    text: str
    advice: str = ""

    def line(self, width: int) -> str:
        """The line for people, with the subject in a column of that width."""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.level.value:8} {self.subject:{width}} {self.text}{advice}"


def ok(subject: str, text: str) -> Finding:
    """A finding without advice."""
    return Finding(subject, Level.OK, text)


def note(subject: str, text: str, advice: str = "") -> Finding:
    """A finding that is neither good nor bad."""
    return Finding(subject, Level.NOTE, text, advice)


def warning(subject: str, text: str, advice: str) -> Finding:
    """Something that costs speed, or a part."""
    return Finding(subject, Level.WARNING, text, advice)


def problem(subject: str, text: str, advice: str) -> Finding:
    """Something without which nothing is served."""
    return Finding(subject, Level.PROBLEM, text, advice)
