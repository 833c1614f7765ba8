"""docs/structure.md against the folders that exist and the layers of pyproject.toml's contracts."""

import re
import tomllib
from collections import Counter
from pathlib import Path

from tests.support.pages import ROOT, TOPS, code_files, text_of

PAGE = text_of("docs/structure.md")
MIRRORS = [top for top in TOPS if top != "tests"]
"""`tests/NAME` tests one of these."""


def _rows(heading: str) -> list[list[str]]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def _contracts() -> list[dict[str, object]]:
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    assert isinstance(contracts, list)
    return contracts


def _holds_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.iterdir())


def _is_ours(folder: Path) -> bool:
    hidden = any(part.startswith(("__", ".", "node_modules")) for part in folder.relative_to(ROOT).parts)
    return folder.is_dir() and not hidden and _holds_files(folder)


def test_the_layers_of_the_gpu_service_are_those_of_the_contract() -> None:
    shown: dict[int, set[str]] = {}
    for layer, package, what in _rows("gpu_service"):
        assert what
        shown.setdefault(int(layer), set()).add(package.strip("`/").removesuffix(".py"))
    (layers,) = (contract["layers"] for contract in _contracts() if contract.get("containers") == ["gpu_service"])
    assert isinstance(layers, list)
    assert shown == {number: set(layer.split(" | ")) for number, layer in enumerate(layers, 1)}


def test_every_package_and_module_of_the_gpu_service_has_a_row() -> None:
    service = ROOT / "gpu_service"
    packages = {f"{path.name}/" for path in service.iterdir() if _is_ours(path)}
    modules = {path.name for path in service.glob("*.py") if path.name != "__init__.py"}
    assert {package.strip("`") for _, package, _ in _rows("gpu_service")} == packages | modules


def test_every_folder_at_the_top_has_a_row() -> None:
    rows = {folder.strip("`") for folder, *_ in _rows("The top")}
    assert rows == {f"{top}/" for top in (*TOPS, "docs")}
    assert {f"{path.name}/" for path in ROOT.iterdir() if _is_ours(path) and (path / "__init__.py").exists()} <= rows


def test_every_folder_below_the_others_has_a_row() -> None:
    """Those of gpu_service have a table of their own; tests that mirror a package are described by it."""
    rows = [folder.strip("`") for folder, _ in _rows("Below the other folders")]
    folders = {
        f"{path.relative_to(ROOT).as_posix()}/"
        for top in TOPS
        for path in (ROOT / top).rglob("*")
        if top != "gpu_service" and _is_ours(path)
    }
    described = {
        folder
        for folder in folders
        if re.match(rf"tests/({'|'.join(MIRRORS)})/|observability/grafana/.|tests/[a-z]+/.", folder)
    }
    assert set(rows) <= folders
    assert folders - described <= set(rows)


def test_tests_mirror_packages_that_exist() -> None:
    """`tests/gpu_service/engine` tests `gpu_service/engine`."""
    for top in MIRRORS:
        for path in (ROOT / "tests" / top).rglob("*"):
            if _is_ours(path):
                assert (ROOT / path.relative_to(ROOT / "tests")).is_dir(), path


def test_packages_that_only_decide_are_named() -> None:
    (contract,) = (contract for contract in _contracts() if str(contract["name"]).startswith("What only decides"))
    sources = contract["source_modules"]
    assert isinstance(sources, list)
    packages = {name.removeprefix("gpu_service.") for name in sources if name.count(".") == 1}
    sentence = PAGE.split(f"**{contract['name']}**")[1].split("and the modules listed")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == packages


def test_every_contract_is_named() -> None:
    """Bold, or by what the tables say of the layers."""
    text = " ".join(PAGE.replace("`", "").split())
    described = {
        "Imports point one way": "never import one another",
        "The packages of the GPU service import downwards": "A layer imports those below it",
        "No circles": "There are no circles in any package",
    }
    for contract in _contracts():
        name = str(contract["name"])
        words = next((words for start, words in described.items() if name.startswith(start)), name.partition(",")[0])
        assert words.lower() in text.lower(), name


def test_folders_and_files_are_of_the_size_that_the_page_states() -> None:
    sources = [path for path in code_files() if path.suffix in {".py", ".cpp", ".h"} and "v1" not in path.parts]
    ours = [path for path in sources if not path.is_relative_to(ROOT / "tests")]
    assert len(ours) > 200
    assert [path for path in ours if len(path.read_text().splitlines()) > 300] == []
    assert {folder: count for folder, count in Counter(path.parent for path in ours).items() if count > 16} == {}
