"""What the images install: every file has a hash, and the versions are those of constraints.txt. No network."""

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.locks import BUILD_TOOLS, FOLDER, LEFT_OUT, ROOT, requirements

IMAGES = ["tools", *LEFT_OUT]
HINT = "run `make locks`"


def _locked(image: str) -> dict[str, str]:
    text = (FOLDER / f"{image}.lock").read_text()
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)[^\n]*\\((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)", text, re.M)
    assert len(pins) == len(re.findall(r"^[^\s#]", text, re.M)), "a line without a hash"
    return {canonicalize_name(name): version for name, version, _ in pins}


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


@pytest.mark.parametrize("image", IMAGES)
def test_versions_are_those_of_the_constraints(image: str) -> None:
    constraints = _constraints()
    for name, version in _locked(image).items():
        assert constraints.get(name, version) == version, f"{name}: {HINT}"


@pytest.mark.parametrize("image", LEFT_OUT)  # the build's tools are not installed here
def test_all_that_an_image_needs_is_locked(image: str) -> None:
    locked = _locked(image)
    needed = [Requirement(each) for each in requirements(image)]
    seen: set[str] = set()
    while needed:
        each = needed.pop()
        name = canonicalize_name(each.name)
        assert name in locked, f"{name}: {HINT}"
        assert each.specifier.contains(locked[name], prereleases=True), f"{name}: {HINT}"
        if name not in seen:
            seen.add(name)
            own = map(Requirement, importlib.metadata.requires(name) or [])
            needed += [other for other in own if other.marker is None or other.marker.evaluate({"extra": ""})]


def test_what_builds_the_images_is_locked() -> None:
    assert _locked("tools").keys() >= set(BUILD_TOOLS)


@pytest.mark.parametrize("image", LEFT_OUT)
def test_pytorch_comes_from_its_own_index(image: str) -> None:
    assert "torch" not in _locked(image)
