"""docs/operations.md against compose.yaml. tests/observability checks that every alert has its section."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
COMPOSE = "".join((ROOT / name).read_text() for name in ("compose.yaml", "compose.gpu.yaml"))


def _table_of_variables() -> dict[str, str]:
    """The default of each variable, as the page shows it, by name."""
    section = PAGE.split("### What compose.yaml reads")[1].split("\n#")[0]
    rows = [row.split("|")[1:3] for row in section.splitlines() if row.startswith("| `")]
    return {name: defaults for names, defaults in rows for name in re.findall(r"`([A-Z_*]+)`", names)}


def test_every_variable_that_compose_reads_is_told_with_its_default() -> None:
    shown = _table_of_variables()
    defaults = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", COMPOSE))
    assert defaults.keys() - {name for name in defaults if name in shown} == set()
    for name, default in defaults.items():
        if default and not default.startswith(("https:", "${")):  # ${HOME}/... is told as ~/...
            assert f"`{default}`" in shown[name], name


def test_no_variable_is_told_that_compose_does_not_read() -> None:
    read = set(re.findall(r"\$\{([A-Z_]+)[:}]", COMPOSE))
    assert {name for name in _table_of_variables() if "*" not in name} <= read


def test_links_lead_to_files_and_headings() -> None:
    headings = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        if path:
            assert (ROOT / "docs" / path).exists(), target
        else:
            assert anchor in headings, target
