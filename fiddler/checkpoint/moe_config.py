"""What config.json says about a model's experts, under whichever names its family uses. It looks at no tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiddler.checkpoint.errors import ConfigError

_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""The sections in which multimodal models keep the settings of their language model."""
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_HIDDEN_SIZES = ("hidden_size", "d_model")
_LATENT_SIZE = "moe_latent_size"
"""The setting with which Nemotron-H projects rows to another size before its experts, and back after them."""
_ACTIVATIONS = (
    "hidden_act",
    "mlp_hidden_act",
    "hidden_activation",
    "activation_function",
    "activation",
    "dense_act_fn",
)
_ENCODER_LAYERS = ("num_layers", "encoder_layers")
_NUM_LAYERS = frozenset(
    {
        "num_hidden_layers",
        "num_layers",
        "n_layers",
        "n_layer",
        "depth",
        "encoder_layers",
        "decoder_layers",
        "num_encoder_layers",
        "num_decoder_layers",
    }
)
"""Settings that give a number of layers, each of which has tensors of its own."""
_EXPERT_SIZES = ("moe_intermediate_size",)
_DENSE_SIZES = ("intermediate_size",)  # where experts are as wide as the dense layers
_EXPERT_SECTION = "ffn_config"
"""The section in which DBRX keeps the settings of its experts."""
_TYPES_BY_ARCHITECTURE = {"OpenMoeForCausalLM": "openmoe"}
"""Families published with the model_type of another family, whose configuration they reused: OpenMoE says llama."""
_ADD_ONE_TO_UP = frozenset({"gpt_oss"})
"""Types with clamped_swiglu experts whose published config.json does not say so; others give a swiglu_alpha."""


@dataclass(frozen=True, slots=True)
class Activation:
    """What an expert computes between its projections, by its name in `fiddler.expert_math`."""

    name: str
    alpha: float = 1.702
    """Of clamped_swiglu."""
    limit: float = 7.0
    """Of the clamped ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """The settings that expert tensors must agree with; None if config.json does not give one."""

    path: Path
    model_type: str
    text_model_type: str
    hidden_size: int
    """Of the rows that experts are given."""
    num_experts: int | None
    intermediate_size: int | None
    num_decoder_layers: int | None
    num_encoder_layers: int | None
    """Only of a model with an encoder and a decoder; the encoder's layers are counted first."""
    activation: Activation
    hidden_size_field: str = "hidden_size"
    """The setting that gives the hidden size."""
    num_experts_field: str = "num_experts"
    """The setting that gives the number of experts, if there is one."""
    intermediate_size_field: str = "moe_intermediate_size"
    """The setting that gives the intermediate size, if there is one."""


def parse_config(config: dict[str, Any], path: Path) -> MoeConfig:
    """Picks the experts' settings out of config.json.

    Raises:
        ConfigError: config.json lacks its model_type or hidden size.
    """
    model_type = model_type_of(config)
    if model_type is None:
        raise ConfigError(f"{path} names no model_type.")
    text: dict[str, Any] = next((config[key] for key in _TEXT_CONFIGS if isinstance(config.get(key), dict)), {})
    # the top level may give what the language model's own section leaves out
    merged = {**config, "model_type": model_type, **text}
    merged |= _of_expert_section(merged)
    is_latent = "nemotron_h" in str(merged["model_type"])
    hidden_sizes = (_LATENT_SIZE, *_HIDDEN_SIZES) if is_latent and merged.get(_LATENT_SIZE) else _HIDDEN_SIZES
    hidden_size = _first_int(merged, hidden_sizes)
    if hidden_size is None:
        raise ConfigError(f"{path} gives no hidden_size.")
    expert_sizes = _DENSE_SIZES if model_type == "openmoe" else _EXPERT_SIZES
    return MoeConfig(
        path=path,
        model_type=model_type,
        text_model_type=str(merged["model_type"]),
        hidden_size=hidden_size,
        num_experts=_first_int(merged, _NUM_EXPERTS),
        intermediate_size=_first_int(merged, expert_sizes),
        num_decoder_layers=_first_int(merged, ("num_hidden_layers",)),
        num_encoder_layers=_first_int(merged, _ENCODER_LAYERS) if merged.get("is_encoder_decoder") else None,
        activation=_activation(merged, model_type),
        hidden_size_field=_first_name(merged, hidden_sizes),
        num_experts_field=_first_name(merged, _NUM_EXPERTS),
        intermediate_size_field=_first_name(merged, expert_sizes),
    )


def _of_expert_section(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a section about experts, under the names that other families use."""
    section = config.get(_EXPERT_SECTION)
    if not isinstance(section, dict):
        return {}
    activation = section.get("ffn_act_fn")
    found = {
        "moe_num_experts": section.get("moe_num_experts"),
        "moe_intermediate_size": section.get("ffn_hidden_size"),
        "hidden_act": activation.get("name") if isinstance(activation, dict) else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def model_type_of(config: dict[str, Any]) -> str | None:
    """The family of a config.json; None if it names none."""
    architectures = config.get("architectures")
    for architecture in architectures if isinstance(architectures, list) else ():
        if architecture in _TYPES_BY_ARCHITECTURE:
            return _TYPES_BY_ARCHITECTURE[architecture]
    model_type = config.get("model_type")
    return model_type if isinstance(model_type, str) else None


def mentions_experts(config: dict[str, Any]) -> bool:
    """Whether config.json, at any depth, gives a number of experts above one."""
    return any(key in _NUM_EXPERTS and _counts_experts(value) for key, value in settings_of(config))


def _counts_experts(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(type(number) is int and number > 1 for number in values)


def settings_of(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting of config.json with its value, at any depth; a section comes before what it holds."""
    sections = [config]
    while sections:
        for key, value in sections.pop().items():
            yield key, value
            if isinstance(value, dict):
                sections.append(value)


def check_depth(config: dict[str, Any], path: Path, num_tensors: int) -> None:
    """Refuses more layers than there are tensors: building so many would take memory and hours before it fails.

    Raises:
        ConfigError: A setting says so.
    """
    for name, value in settings_of(config):
        if name in _NUM_LAYERS and type(value) is int and value > num_tensors:
            raise ConfigError(f"{path}: {name} is {value}, but the checkpoint has only {num_tensors} tensors.")


def _activation(config: dict[str, Any], model_type: str) -> Activation:
    """The experts' activation. Clamped ones get names of their own, so that the plain one is never computed instead."""
    name = next((config[key] for key in _ACTIVATIONS if isinstance(config.get(key), str)), "silu")
    alpha, limit = config.get("swiglu_alpha"), config.get("swiglu_limit")
    if model_type == "openmoe" and name == "swiglu":
        return Activation("silu")  # of half of what OpenMoE calls the gate; the other half is Expert.factor
    if config.get("swiglu_limits") is not None:
        return Activation(f"clamped_{name}_by_layer")
    if alpha is not None or model_type in _ADD_ONE_TO_UP:
        default = Activation("clamped_swiglu")
        return Activation(default.name, alpha=_number(alpha, default.alpha), limit=_number(limit, default.limit))
    return Activation(name) if limit is None else Activation(f"clamped_{name}", limit=_number(limit, 0.0))


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def _first_int(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    value = config.get(_first_name(config, keys))
    return value if type(value) is int and value > 0 else None


def _first_name(config: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The first of the settings that is a whole number above 0; the first of all if none is."""
    return next((key for key in keys if type(config.get(key)) is int and config[key] > 0), keys[0])
