"""The table of families: complete for the installed transformers, explained, and printed completely."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from gpu_service.models import __main__ as models
from gpu_service.models.families import OWN, REFUSED, SWEPT, VERIFIED
from gpu_service.models.glossary import FEATURES, METHODS
from gpu_service.models.registry import ALIASES
from tests.support.families.published import PUBLISHED

ROOT = Path(__file__).parents[3]
GENERATING = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)
EXPERTS_CLASS = re.compile(r"^class \w*(?:Experts|MoE|Moe|MOE)\w*\b|^@use_experts_implementation", re.MULTILINE)


def _settings(config: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield str(key), value
        if isinstance(value, dict):
            yield from _settings(value)


def _has_experts(model_type: str) -> bool:
    """Whether transformers' code for a family has experts, or its configuration counts some."""
    config_class = CONFIG_MAPPING[model_type]
    folder = Path(transformers.__file__).parent.joinpath(*config_class.__module__.split(".")[1:-1])
    if any(EXPERTS_CLASS.search(file.read_text()) for file in folder.glob("modeling_*.py")):
        return True
    try:
        settings = config_class().to_dict()
    except Exception:  # some configurations cannot be made without arguments
        return False
    return any("expert" in key and type(value) is int and value > 1 for key, value in _settings(settings))


@pytest.fixture(scope="module")
def families_with_experts() -> set[str]:
    """The families of the installed transformers that have experts and can generate text."""
    writing = [name for name in CONFIG_MAPPING if any(CONFIG_MAPPING[name] in mapping for mapping in GENERATING)]
    return {name for name in writing if _has_experts(name)}


def test_every_family_of_transformers_is_verified_or_refused_with_a_reason(families_with_experts: set[str]) -> None:
    assert len(families_with_experts) > 60, "they are found at all"
    assert sorted(families_with_experts - VERIFIED.keys() - REFUSED.keys()) == []


def test_no_row_is_about_a_family_that_is_not_there(families_with_experts: set[str]) -> None:
    own = {name for name, family in VERIFIED.items() if family.test == OWN} | ALIASES.keys()
    assert sorted((VERIFIED.keys() | REFUSED.keys()) - families_with_experts - own) == []
    assert VERIFIED.keys().isdisjoint(REFUSED)


def test_what_the_table_promises_is_in_it() -> None:
    assert len(VERIFIED) >= 40
    assert {"deepseek", "openmoe", "switch_transformers"} <= VERIFIED.keys()
    structures = {feature for family in VERIFIED.values() for feature in family.features}
    for structure in (
        "not gated",
        "biases",
        "transposed",
        "latent attention",
        "recurrent state",
        "sliding window",
        "encoder-decoder",
    ):
        assert structure in structures
    assert any("not gated" not in family.features for family in VERIFIED.values())


def test_every_word_and_every_test_of_the_table_is_explained() -> None:
    used = {feature for family in VERIFIED.values() for feature in family.features}
    assert used <= FEATURES.keys()
    assert {family.test for family in VERIFIED.values()} == METHODS.keys()
    for family in VERIFIED.values():
        assert list(family.features) == sorted(family.features)
        assert (ROOT / family.test).is_file()
    for reason in REFUSED.values():
        assert len(reason.split()) > 4
        assert not reason.endswith(".")


def test_families_that_are_published_in_few_bits_are_verified_in_that_format() -> None:
    assert {name for name, family in VERIFIED.items() if family.published_as} == PUBLISHED.keys()
    assert PUBLISHED.keys() <= SWEPT.keys()


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "models.md").read_text() == models.as_markdown(), "`make models` writes it"


def test_the_family_that_contributing_shows_was_added_so() -> None:
    block = (ROOT / "CONTRIBUTING.md").read_text().partition("```diff\n")[2].partition("```")[0]
    files = re.findall(r"^\+\+\+ b/(\S+)$", block, re.MULTILINE)
    parts = re.split(r"^\+\+\+ b/\S+$", block, flags=re.MULTILINE)[1:]
    assert files == ["fiddler/checkpoint/namings.py", "gpu_service/models/families.py"]
    for file, part in zip(files, parts, strict=True):
        added = [line[1:] for line in part.splitlines() if line.startswith("+")]
        assert added
        assert "\n".join(added) in (ROOT / file).read_text()


@pytest.mark.parametrize("form", models.Form)
def test_the_command_prints_each_family(form: models.Form, capsys: pytest.CaptureFixture[str]) -> None:
    if form is models.Form.JSON:  # one as a process; the others only print otherwise
        command = [sys.executable, "-m", "gpu_service.models", "--format", form.value]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        models.main(form)
        output = capsys.readouterr().out
    for name in [*VERIFIED, *REFUSED]:
        assert name in output
    for reason in REFUSED.values():
        assert (json.dumps(reason)[1:-1] if form is models.Form.JSON else reason) in output
    if form is models.Form.JSON:
        objects = [json.loads(line) for line in output.splitlines()]
        assert {each["model_type"] for each in objects if each["verified"]} == VERIFIED.keys()
        assert {each["model_type"] for each in objects if each.get("test") in (None, *METHODS)} >= SWEPT.keys()
