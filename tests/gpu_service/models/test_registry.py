"""The rows of the registry name classes that exist, and importing it does not import modelling code."""

import subprocess
import sys

import pytest
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from gpu_service.models.families import VERIFIED
from gpu_service.models.registry import ALIASES, ARCHITECTURES, CONFIGURATIONS, architecture_of, configuration_of


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_a_row_names_classes_that_exist(model_type: str) -> None:
    architecture = architecture_of(model_type)
    assert model_type in VERIFIED
    assert callable(architecture.auto_class.from_config)
    assert callable(architecture.auto_class.from_pretrained)
    replacements = architecture.replacements()
    assert len(replacements) == len(architecture.replaced)
    for original, ours in replacements.items():
        assert issubclass(original, nn.Module)
        assert issubclass(ours, nn.Module)


def test_a_family_without_a_row_is_built_by_transformers_alone() -> None:
    assert architecture_of("mixtral") == architecture_of("no such family")
    assert architecture_of("mixtral").replacements() == {}
    assert configuration_of("mixtral") is None


@pytest.mark.parametrize("model_type", sorted(CONFIGURATIONS))
def test_a_configuration_of_ours_is_of_the_type_it_is_listed_under(model_type: str) -> None:
    assert configuration_of(model_type).model_type == model_type


def test_modelling_code_is_imported_only_when_a_model_is_built() -> None:
    code = "import sys, gpu_service.models.registry, gpu_service.text.tokenizer; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    modelling = [name for name in imported if name.startswith("transformers.models.") and ".modeling_" in name]
    assert modelling == ["transformers.models.auto.modeling_auto"]
    assert "transformers.modeling_utils" not in imported


@pytest.mark.parametrize("model_type", sorted(ALIASES))
def test_a_family_under_another_name_is_read_as_the_one_that_transformers_knows(model_type: str) -> None:
    assert configuration_of(model_type).model_type == ALIASES[model_type]
    assert model_type not in CONFIG_MAPPING, "transformers knows it by now, and the alias goes"
