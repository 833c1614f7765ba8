"""The hand-written pages of the repository, for tests that hold them against the code."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
GENERATED: Final = frozenset({"docs/metrics.md", "docs/settings.md", "docs/models.md", "docs/will_it_run.md"})
"""Pages that a command writes; their generators are tested instead."""


def hand_written() -> list[str]:
    """README, CONTRIBUTING, CHANGELOG, docs and decisions, as paths from the root."""
    tops = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return [*tops, *(page for page in docs if page not in GENERATED)]


def text_of(page: str) -> str:
    """A page, by its path from the root."""
    return (ROOT / page).read_text()


TOPS: Final = (
    *(
        "benchmarks",
        "client",
        "cpu_expert_service",
        "deploy",
        "examples",
        "fiddler",
        "fiddler_checkup",
        "fiddler_cli",
        "gpu_service",
        "http_gateway",
        "models",
        "observability",
    ),
    *("pair", "protos", "tests", "tools"),
)
"""The folders that hold code."""
CODE: Final = frozenset({".cpp", ".h", ".json", ".proto", ".py", ".toml", ".txt", ".yaml", ".yml"})


_FOREIGN: Final = frozenset({"node_modules", ".venv"})


def code_files() -> list[Path]:
    """Every text file of the code, and the files that build and run it."""
    files = [path for path in ROOT.iterdir() if path.suffix in CODE or path.name in ("Dockerfile", "Makefile")]
    for top in TOPS:
        files += [path for path in (ROOT / top).rglob("*") if path.suffix in CODE and not _FOREIGN & {*path.parts}]
    return sorted(files)
