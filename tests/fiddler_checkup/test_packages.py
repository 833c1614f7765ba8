"""Packages whose names others use, too: what is wrong with them is told before it is a traceback."""

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from fiddler_checkup import packages
from fiddler_checkup.doctor import system
from fiddler_checkup.doctor.finding import Level

ROOT = Path(__file__).parents[2]
Install = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of installed packages, the only one that is searched, with this project's in it."""
    for name in packages.PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(packages, "_ROOT", tmp_path.resolve())
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [each for each in sys.meta_path if "editable" not in repr(each).lower()])
    return tmp_path


@pytest.fixture
def install(site: Path) -> Install:
    """Writes what pip writes beside a distribution's files: its name, version and the record of its files."""

    def write(name: str, record: str, *, origin: object = None, directory: Path = site) -> Path:
        folder = directory / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "RECORD").write_text(record)
        if origin is not None:
            (folder / "direct_url.json").write_text(json.dumps(origin))
        return folder

    return write


def test_the_packages_are_those_of_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(project["tool"]["scikit-build"]["wheel"]["packages"]) == list(packages.PACKAGES)


def test_an_installation_that_is_whole_is_fine(install: Install) -> None:
    install("fiddler-moe", "client/__init__.py,,0\nclient/__pycache__/__init__.pyc,,\n")
    install("another", "another/client/__init__.py,,0\nmy_client/__init__.py,,0\n")
    assert packages.troubles() == []
    assert system.own_packages().level is Level.OK


def test_another_that_installs_into_the_same_package_is_named(install: Install) -> None:
    install("fiddler-moe", "client/__init__.py,,17\nclient/py.typed,,0\npair/__init__.py,,0\n")
    install("other", "client/__init__.py,,0\nclient/more.py,,0\n")
    found = system.own_packages()
    assert (found.level, found.advice) == (Level.PROBLEM, packages.ADVICE)
    assert found.text == (
        "client also holds files of other 1.0; 2 files are missing or changed, such as client/__init__.py"
    )


def test_another_of_the_same_name_in_another_place_is_no_trouble_unless_it_comes_first(
    site: Path, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    install("other", "pair/__init__.py,,0\n", directory=elsewhere)
    (elsewhere / "pair").mkdir()
    (elsewhere / "pair" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(site), str(elsewhere)])
    assert packages.troubles() == []
    monkeypatch.setattr(sys, "path", [str(elsewhere), str(site)])
    assert packages.troubles() == [f"pair is another's, {elsewhere / 'pair' / '__init__.py'}"]


def test_a_package_that_was_taken_away_is_missing(site: Path) -> None:
    (site / "pair" / "__init__.py").unlink()
    (site / "pair").rmdir()
    assert packages.troubles() == ["pair is missing"]


def test_an_import_that_fails_for_another_reason_keeps_its_traceback(site: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such"), packages.told("fiddler"):
        import no_such  # type: ignore[import-not-found] # noqa: F401


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "--no-cache-dir --no-binary fiddler-moe fiddler-moe"),
        ({"url": "file:///src/a%20clone", "dir_info": {}}, "'/src/a clone'"),
        ({"url": "file:///src/clone", "dir_info": {"editable": True}}, "--editable /src/clone"),
        ({"url": "file:///dist/fiddler_moe-0.1.0-py3-none-any.whl", "archive_info": {}}, "."),
    ],
)
def test_how_to_install_again_follows_how_it_was_installed(origin: object, command: str, install: Install) -> None:
    install("fiddler-moe", "", origin=origin)
    assert packages.how_to_install_again() == f"pip install --force-reinstall --no-deps {command}"
