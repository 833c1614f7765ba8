"""What DBRX's configuration has in sections of its own. Its experts have MoeLayer's arguments and need no block here.

The published config.json has the base of the rotary positions (500,000) in attn_config, which transformers 5 does not
read: it would compute them with 10,000.
"""

from typing import Any

from gpu_service.models.config_fields import FieldError, Settings


def complete_config(config: Any, settings: Settings) -> None:
    """Copies the base of the rotary positions from attn_config.

    Args:
        config: transformers' configuration, which is changed.
        settings: The content of config.json.

    Raises:
        FieldError: The base is missing, or two sections give different ones.
    """
    section = settings.get("attn_config")
    base = section.get("rope_theta") if isinstance(section, dict) else None
    if isinstance(base, bool) or not isinstance(base, int | float) or not base > 0:
        raise FieldError(f"attn_config.rope_theta: must be a number above 0, got {base!r}")
    if settings.get("rope_parameters") is None:
        config.rope_parameters["rope_theta"] = float(base)
    elif (other := config.rope_parameters.get("rope_theta")) != base:
        raise FieldError(f"attn_config.rope_theta: is {base}, and rope_parameters.rope_theta {other}; they must agree")


def num_experts_per_token(config: Any) -> int:
    """How many experts each token uses in a MoE layer."""
    return int(config.ffn_config.moe_top_k)
