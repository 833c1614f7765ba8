"""How a model is built: by which class, and with what in the place of its experts.

Nearly every family has transformers' experts interface and needs no row here: `Architecture()` describes it.
`ARCHITECTURES` has a row for each family that is built differently, `CONFIGURATIONS` for each whose model code is in
this package. Rows give the full names of classes, so that a family's modelling code is imported only when a model of it
is built. No weights are loaded here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

from gpu_service.models import dbrx, nllb_moe
from gpu_service.moe.layer import MoeLayer

Replacements = Mapping[type[nn.Module], type[nn.Module]]
"""What is built in the place of a model's classes: a MoeLayer, or a block that has one."""

_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.")


def experts_by_interface(skeleton: nn.Module) -> Replacements:
    """The classes of a model's experts, recognised by the method `_apply_gate` of transformers' experts interface."""
    return {type(module): MoeLayer for module in skeleton.modules() if hasattr(module, "_apply_gate")}


def layer_number(module_name: str) -> int | None:
    """The decoder layer of a module, counted as `fiddler.checkpoint.CheckpointLayer.decoder_layer`; None if unknown."""
    match = _LAYER_NUMBER.search(module_name)
    return int(match[1]) if match else None


def num_experts_per_token(config: Any) -> int:
    """The experts that each token uses, under any of the names in configurations; 0 if there is none of them."""
    text_config = config.get_text_config(decoder=True)
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "router_topk")
    return next((value for name in names if isinstance(value := getattr(text_config, name, None), int)), 0)


class AutoModelThatWrites:
    """transformers' class for models of text or, if a family has none, the one that also takes images and sound.

    Prompts are text alone either way; the towers for other input are loaded with the rest of the dense part.
    """

    @staticmethod
    def from_config(config: Any, **settings: Any) -> Any:
        """The model of a configuration, with random weights."""
        return _auto_class(config).from_config(config, **settings)

    @staticmethod
    def from_pretrained(directory: Any, *, config: Any = None, **settings: Any) -> Any:
        """The model of a checkpoint."""
        config = config or AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return _auto_class(config).from_pretrained(directory, config=config, **settings)


def _auto_class(config: Any) -> Any:
    is_multimodal = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    return AutoModelForMultimodalLM if is_multimodal else AutoModelForCausalLM


def _leave_config(config: Any, settings: Mapping[str, Any]) -> None:
    """Adds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How models of one model_type are built. Classes are given by their full names."""

    model_class: str = "gpu_service.models.registry.AutoModelThatWrites"
    """One of transformers' Auto classes, or a class with their from_config and from_pretrained."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """The classes of transformers to replace, and by what; none: the experts that `experts_by_interface` finds.

    transformers builds a replacement with the arguments of the original. It must have no parameters for the experts,
    since all of its parameters are loaded. `MoeLayer.connect` is called once the model is loaded.
    """
    layer_number: Callable[[str], int | None] = layer_number
    """From the name of a replaced module to the decoder layer of the checkpoint that holds its experts."""
    num_experts_per_token: Callable[[Any], int] = num_experts_per_token
    """How many experts each token uses, from transformers' configuration."""
    recomputes_for_angles: bool = False
    """Whether transformers computes a sequence again when its length changes the angles of RoPE."""
    complete_config: Callable[[Any, Mapping[str, Any]], None] = _leave_config
    """Adds to transformers' configuration the settings of config.json that transformers does not read.

    It raises a gpu_service.models.config_fields.FieldError if one is missing or wrong.
    """

    @property
    def auto_class(self) -> Any:
        """The class that builds the model."""
        return _imported(self.model_class)

    def class_of(self, config: Any) -> Any:
        """The class that `auto_class` chooses for a configuration."""
        auto_class = _auto_class(config) if self.auto_class is AutoModelThatWrites else self.auto_class
        mapping = getattr(auto_class, "_model_mapping", None)
        return auto_class if mapping is None else _get_model_class(config, mapping)  # type: ignore[no-untyped-call]

    def replacements(self) -> Replacements:
        """The classes to replace, and by what; empty if `experts_by_interface` finds them."""
        return {_imported(original): _imported(ours) for original, ours in self.replaced.items()}


_SEQ2SEQ: Final = "transformers.AutoModelForSeq2SeqLM"
_LLAMA4: Final = {"transformers.models.llama4.modeling_llama4.Llama4TextMoe": "gpu_service.models.llama4.Llama4Block"}
_NLLB: Final = {
    "transformers.models.nllb_moe.modeling_nllb_moe.NllbMoeExperts": "gpu_service.models.nllb_moe.NllbExperts"
}
_SWITCH: Final = {
    "transformers.models.switch_transformers.modeling_switch_transformers.SwitchTransformersExperts": (
        "gpu_service.models.switch_transformers.SwitchExperts"
    )
}

ARCHITECTURES: Final[dict[str, Architecture]] = {
    "dbrx": Architecture(
        replaced={"transformers.models.dbrx.modeling_dbrx.DbrxExperts": "gpu_service.moe.layer.MoeLayer"},
        num_experts_per_token=dbrx.num_experts_per_token,
        complete_config=dbrx.complete_config,
    ),
    # the models of this package are built with MoeLayers, so nothing is replaced
    "deepseek": Architecture(model_class="gpu_service.models.deepseek_moe.DeepseekForCausalLM"),
    "jetmoe": Architecture(
        replaced={"transformers.models.jetmoe.modeling_jetmoe.JetMoeMoE": "gpu_service.models.jetmoe.JetMoeBlock"}
    ),
    "llama4": Architecture(model_class="transformers.AutoModelForImageTextToText", replaced=_LLAMA4),
    "llama4_text": Architecture(replaced=_LLAMA4),
    "nllb-moe": Architecture(
        model_class=_SEQ2SEQ,
        replaced=_NLLB,
        num_experts_per_token=nllb_moe.num_experts_per_token,
        complete_config=nllb_moe.check_config,
    ),
    "openmoe": Architecture(model_class="gpu_service.models.openmoe.OpenMoeForCausalLM"),
    "phimoe": Architecture(recomputes_for_angles=True),
    "switch_transformers": Architecture(model_class=_SEQ2SEQ, replaced=_SWITCH, num_experts_per_token=lambda config: 1),
}
"""The families that are built differently, by model_type."""

CONFIGURATIONS: Final = {
    "deepseek": "gpu_service.models.deepseek_moe.DeepseekConfig",
    "openmoe": "gpu_service.models.openmoe.OpenMoeConfig",
}
"""The classes that read a config.json which transformers does not know, by `fiddler.checkpoint`'s model_type."""

ALIASES: Final = {"kimi_k2": "deepseek_v3"}
"""Families that transformers does not know and that are one of its families under another model_type."""

_DEFAULT: Final = Architecture()


def architecture_of(model_type: str) -> Architecture:
    """How a model of this type is built."""
    return ARCHITECTURES.get(model_type, _DEFAULT)


def configuration_of(model_type: str) -> Any:
    """The class that reads a config.json of this type; None if transformers finds it itself."""
    if model_type in ALIASES:
        return CONFIG_MAPPING[ALIASES[model_type]]
    return _imported(CONFIGURATIONS[model_type]) if model_type in CONFIGURATIONS else None


def _imported(full_name: str) -> Any:
    module, _, name = full_name.rpartition(".")
    return getattr(import_module(module), name)
