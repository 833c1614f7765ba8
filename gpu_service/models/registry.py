"""How a model is built: which of transformers' classes builds it, and what takes its experts' place.

Nearly every family has transformers' experts interface and needs no row here: it is built as `Architecture()` says. A
row of `ARCHITECTURES` is for a family that is built otherwise, and one of `CONFIGURATIONS` for one whose model code is
ours, too. This module loads no weights.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
)
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

from gpu_service.models import dbrx, nllb_moe
from gpu_service.models.deepseek_moe import DeepseekConfig, DeepseekForCausalLM
from gpu_service.models.jetmoe import JetMoeBlock
from gpu_service.models.llama4 import Llama4Block
from gpu_service.models.nllb_moe import NllbExperts
from gpu_service.models.openmoe import OpenMoeConfig, OpenMoeForCausalLM
from gpu_service.models.switch_transformers import SwitchExperts
from gpu_service.moe.layer import MoeLayer

Replacements = Mapping[type[nn.Module], type[nn.Module]]


def replacing(class_path: str, replacement: type[nn.Module]) -> Callable[[], Replacements]:
    """What puts something in the place of one of transformers' classes.

    Args:
        class_path: Where transformers has the class, as in "dbrx.modeling_dbrx.DbrxExperts".
        replacement: What is built instead, with the same arguments.
    """
    module_path, _, class_name = class_path.rpartition(".")

    def replacements() -> Replacements:
        return {getattr(import_module(f"transformers.models.{module_path}"), class_name): replacement}

    return replacements


_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.")


def experts_by_interface(skeleton: nn.Module) -> Replacements:
    """The experts classes of a model, which transformers' experts interface gives a method of this name."""
    return {type(module): MoeLayer for module in skeleton.modules() if hasattr(module, "_apply_gate")}


def layer_number(module_name: str) -> int | None:
    """The decoder layer of a module of the model, counted as `fiddler.checkpoint.CheckpointLayer.decoder_layer`."""
    match = _LAYER_NUMBER.search(module_name)
    return int(match[1]) if match else None


def num_experts_per_token(config: Any) -> int:
    """The experts that each token uses, by what configurations call them; 0 where none says."""
    text_config = config.get_text_config(decoder=True)
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "router_topk")
    return next((value for name in names if isinstance(value := getattr(text_config, name, None), int)), 0)


def _leave_config(config: Any, settings: Mapping[str, Any]) -> None:
    """Says nothing besides."""


class AutoModelThatWrites:
    """transformers' class for models of text, or, where a family has none, the one that also takes images and sound.

    Prompts are text alone either way; the towers are loaded with the rest of the dense part.
    """

    @staticmethod
    def from_config(config: Any, **settings: Any) -> Any:
        """The model of a configuration, its weights random."""
        return _auto_class(config).from_config(config, **settings)

    @staticmethod
    def from_pretrained(directory: Any, *, config: Any = None, **settings: Any) -> Any:
        """The model of a checkpoint."""
        config = config or AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return _auto_class(config).from_pretrained(directory, config=config, **settings)


def model_class(architecture: "Architecture", config: Any) -> Any:
    """The class itself that the architecture's auto class builds for a configuration."""
    auto_class = _auto_class(config) if architecture.auto_class is AutoModelThatWrites else architecture.auto_class
    mapping = getattr(auto_class, "_model_mapping", None)
    return auto_class if mapping is None else _get_model_class(config, mapping)  # type: ignore[no-untyped-call]


def _auto_class(config: Any) -> Any:
    is_known = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    return AutoModelForMultimodalLM if is_known else AutoModelForCausalLM


@dataclass(frozen=True, slots=True)
class Architecture:
    """How models of one model_type are built."""

    auto_class: Any = AutoModelThatWrites
    """Which of transformers' Auto classes builds the model, or what has their from_config and from_pretrained."""
    replacements: Callable[[], Replacements] | None = None
    """What to replace; None: the experts classes, which `experts_by_interface` finds.

    transformers builds a replacement with the arguments of what it replaces; `MoeLayer.connect` is called once the
    model is loaded. It has no parameters of the experts, since what it has is loaded.
    """
    layer_number: Callable[[str], int | None] = layer_number
    """From the name of a replaced module to the decoder layer of the checkpoint that holds its experts."""
    num_experts_per_token: Callable[[Any], int] = num_experts_per_token
    """How many experts each token uses, told from transformers' configuration."""
    complete_config: Callable[[Any, Mapping[str, Any]], None] = _leave_config
    """Puts into transformers' configuration what config.json says where transformers does not look.

    It raises a gpu_service.models.config_fields.FieldError where that is missing or wrong.
    """


_SWITCH_EXPERTS: Final = "switch_transformers.modeling_switch_transformers.SwitchTransformersExperts"
_LLAMA4: Final = replacing("llama4.modeling_llama4.Llama4TextMoe", Llama4Block)

ARCHITECTURES: Final[dict[str, Architecture]] = {
    "dbrx": Architecture(
        replacements=replacing("dbrx.modeling_dbrx.DbrxExperts", MoeLayer),
        num_experts_per_token=dbrx.num_experts_per_token,
        complete_config=dbrx.complete_config,
    ),
    # ours are built with MoeLayers, so that there is nothing to replace
    "deepseek": Architecture(auto_class=DeepseekForCausalLM),
    "nllb-moe": Architecture(
        auto_class=AutoModelForSeq2SeqLM,
        replacements=replacing("nllb_moe.modeling_nllb_moe.NllbMoeExperts", NllbExperts),
        num_experts_per_token=nllb_moe.num_experts_per_token,
        complete_config=nllb_moe.check_config,
    ),
    "openmoe": Architecture(auto_class=OpenMoeForCausalLM),
    "jetmoe": Architecture(replacements=replacing("jetmoe.modeling_jetmoe.JetMoeMoE", JetMoeBlock)),
    "llama4": Architecture(auto_class=AutoModelForImageTextToText, replacements=_LLAMA4),
    "llama4_text": Architecture(replacements=_LLAMA4),
    "switch_transformers": Architecture(
        auto_class=AutoModelForSeq2SeqLM,
        replacements=replacing(_SWITCH_EXPERTS, SwitchExperts),
        num_experts_per_token=lambda config: 1,
    ),
}
"""By model_type, what is built otherwise than by default."""

CONFIGURATIONS: Final[dict[str, type[DeepseekConfig | OpenMoeConfig]]] = {
    "deepseek": DeepseekConfig,
    "openmoe": OpenMoeConfig,
}
"""What reads a config.json that transformers does not know, by model_type (see `fiddler.checkpoint.moe_config`)."""


def architecture_of(model_type: str) -> Architecture:
    """How a model of this type is built."""
    return ARCHITECTURES.get(model_type, _DEFAULT)


_DEFAULT: Final = Architecture()


"""What is built in the place of a model's classes: a MoeLayer, or a block that has one."""
