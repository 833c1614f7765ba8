"""The names in the hand-written pages against the repository: files, folders, identifiers, flags and make's targets."""

import re
from pathlib import Path

from tests.support.pages import ROOT, code_files, hand_written, text_of

PAGES = [page for page in hand_written() if page != "CHANGELOG.md"]
SUFFIXES = "cpp|gz|h|json|jsonl|mjs|md|proto|py|svg|toml|txt|yaml|yml"
OF_A_CHECKPOINT = frozenset(
    {
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)
FLAGS_OF_OTHERS = frozenset(
    {"--exclude-source-info", "--install-completion", "--reasoning-parser", "--tool-call-parser", "--worker-urls"}
)


def _code_words() -> set[str]:
    files = [path for path in code_files() if not path.is_relative_to(ROOT / "tests" / "docs")]
    return {word for path in files for word in re.findall(r"\w+", path.read_text())}


def _spans(page: str) -> list[str]:
    """What stands between backticks, in text and in tables; not in blocks of commands."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    return re.findall(r"`([^`]+)`", text.replace("\n", " "))


def _paths(page: str) -> list[str]:
    found = []
    for span in _spans(page):
        for part in span.split():
            name = part.strip(",;:()")
            is_file = re.fullmatch(rf"[\w.*{{}},/-]+\.({SUFFIXES})", name)
            is_folder = re.fullmatch(r"[a-z]\w*(/[\w.*-]+)+/?|\w+/", name)
            if (is_file or is_folder) and name not in OF_A_CHECKPOINT and not name.startswith(("/", "application")):
                found.append(name)
    return found


def _exists(page: str, name: str) -> bool:
    """From the root, from gpu_service or from the page's folder; a bare file name, in a folder that the page names.

    Capitals such as FORMAT stand for any name.
    """
    pattern = re.sub(r"\b[A-Z]{3,}(?=[_.])|(?<=_)[A-Z]{3,}\b", "*", name)
    bases = [ROOT, ROOT / "gpu_service", (ROOT / page).parent]
    if "/" not in name:
        bases += [base / folder for folder in _paths(page) if "/" in folder for base in bases[:2]]
    return any(next(base.glob(pattern), None) for base in bases)


def test_files_and_folders_exist() -> None:
    named = [(page, name) for page in PAGES for name in _paths(page)]
    assert len(named) > 100
    assert [(page, name) for page, name in named if not _exists(page, name)] == []


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings() -> None:
    targets = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page))]
    for page, target in targets:
        path, _, anchor = target.partition("#")
        if not re.match(r"[a-z]+:", path):
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), (page, target)
            assert not anchor or anchor in _anchors(file), (page, target)


def _identifiers(page: str) -> set[str]:
    """Of `CamelCase`, `CONSTANTS`, `functions()` and `attributes.of_them`, the parts that are unlike English words."""
    spans = [span for span in _spans(page) if re.fullmatch(r"[A-Za-z_][\w.]*(\(.*\))?", span)]
    names = [span.partition("(")[0] for span in spans if not re.search(rf"\.({SUFFIXES})$", span)]
    words = {word for name in names for word in re.findall(r"\w+", name)}
    return {word for word in words if re.search(r"[a-z][A-Z]|\w_\w|^[A-Z]{3,}$", word)}


def test_identifiers_are_in_the_code() -> None:
    words = _code_words()
    # experiments.md names options of other programs that were tried
    pages = [page for page in PAGES if page != "docs/experiments.md"]
    unknown = {(page, name) for page in pages for name in _identifiers(page) - words}
    assert unknown == set()


def test_flags_are_in_the_code() -> None:
    words = _code_words()
    unknown = set()
    for page in PAGES:
        text = re.sub(r"^ *openssl.*(?:\\\n.*)*", "", text_of(page), flags=re.M)
        for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - FLAGS_OF_OTHERS:
            name = flag[2:].replace("-", "_")
            if not {name, name.removeprefix("no_")} & words:
                unknown.add((page, flag))
    assert unknown == set()


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.M))
    named = {(page, name) for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", text_of(page), re.M)}
    assert {(page, name) for page, name in named if name not in targets} == set()


def test_each_of_the_ten_changes_names_its_files() -> None:
    section = text_of("CONTRIBUTING.md").split("\n## Ten changes")[1].split("\n## ")[0]
    rows = [line.split("|")[1:4] for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    for change, files, how in rows:
        named = re.findall(r"`([^`]+/[^`]+)`", files)
        assert named, change
        assert [name for name in named if not (ROOT / name).exists()] == [], change
        assert how.strip(), change
