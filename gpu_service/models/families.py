"""Which families of models are served, which test shows it, and why others are refused.

This is the table behind `python -m gpu_service.models` and docs/models.md. It decides nothing: a model that can be
built (gpu_service/models/registry.py) is served whether or not its family has a row. A test fails if a family of the
installed transformers has none. Names are transformers' `model_type`s.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fiddler.checkpoint.errors import CheckpointError, ConfigError
from fiddler.checkpoint.hub_cache import snapshot_of
from fiddler.checkpoint.json_file import read_json
from fiddler.checkpoint.moe_config import model_type_of

SWEEP: Final = "tests/families/test_sweep.py"
OWN: Final = "tests/end_to_end/test_own_architectures.py"
"""For families that transformers does not know and that are published with code, which is not run."""

NLLB: Final = "tests/families/test_nllb.py"
"""For the family whose experts transformers computes wrongly: the test mends transformers' model."""


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family that is served, and the structures that distinguish its tiny checkpoints."""

    model_type: str
    features: tuple[str, ...]
    """In alphabetical order; a test computes them from the model."""
    is_batched: bool = True
    """Whether sequences are computed together; if not, one after another within a step."""
    published_as: str = ""
    """The format of the published checkpoints if weights are in 8 or 4 bits; the test's checkpoints are in it."""
    test: str = SWEEP
    """The test that compares its tokens with those of transformers or of an independent reference."""


_VERIFIED = (
    ModelFamily("aria", ("fused", "shared experts", "transposed")),
    ModelFamily("deepseek_ocr2", ("dense layers", "shared experts")),
    ModelFamily(
        "dots3_note",
        ("corrected router", "dense layers", "latent attention", "shared experts", "sparse attention"),
        is_batched=False,
    ),
    ModelFamily("gemma4", ("fused", "gelu_pytorch_tanh", "sliding window")),
    ModelFamily("glm4v_moe", ("corrected router", "dense layers", "shared experts")),
    ModelFamily(
        "glm5_next",
        (
            "clamped_silu",
            "corrected router",
            "dense layers",
            "latent attention",
            "recurrent state",
            "shared experts",
            "sparse attention",
        ),
        is_batched=False,
    ),
    ModelFamily(
        "inkling_mm_model",
        ("fused", "interleaved", "recurrent state", "shared experts", "sliding window"),
        is_batched=False,
    ),
    ModelFamily("minimax_m3_vl", ("clamped_swiglu", "corrected router", "shared experts")),
    ModelFamily("mistral4", ("dense layers", "fused", "latent attention", "shared experts")),
    ModelFamily("mistral_large4", ("dense layers", "shared experts", "sparse attention"), is_batched=False),
    ModelFamily(
        "nemotron_h_omni",
        ("corrected router", "dense layers", "not gated", "recurrent state", "relu2", "shared experts"),
        is_batched=False,
    ),
    ModelFamily("qwen3_5_moe", ("recurrent state", "shared experts"), is_batched=False),
    ModelFamily("qwen3_omni_moe_thinker", ()),
    ModelFamily("qwen3_vl_moe", ("fused",)),
    ModelFamily("qwen4_exp", ("recurrent state", "shared experts", "sparse attention"), is_batched=False),
    ModelFamily(
        "unlimited_ocr", ("dense layers", "shared experts", "sliding window", "sparse attention"), is_batched=False
    ),
    ModelFamily("afmoe", ("corrected router", "dense layers", "shared experts", "sliding window")),
    ModelFamily("aria_text", ("fused", "shared experts", "transposed")),
    ModelFamily("axk1", ("corrected router", "dense layers", "latent attention", "shared experts")),
    ModelFamily(
        "axk2",
        ("corrected router", "dense layers", "latent attention", "shared experts", "sparse attention"),
        is_batched=False,
    ),
    ModelFamily(
        "bailing_hybrid",
        ("corrected router", "dense layers", "latent attention", "recurrent state", "shared experts"),
        is_batched=False,
    ),
    ModelFamily("beam", ("corrected router", "dense layers", "sliding window")),
    ModelFamily("cohere2_moe", ("shared experts", "sliding window")),
    ModelFamily("dbrx", ("transposed",)),
    ModelFamily("deepseek", ("dense layers", "shared experts"), test=OWN),
    ModelFamily("deepseek_v2", ("dense layers", "latent attention", "shared experts")),
    ModelFamily(
        "deepseek_v3", ("corrected router", "dense layers", "latent attention", "shared experts"), published_as="FP8"
    ),
    ModelFamily(
        "deepseek_v32",
        ("corrected router", "dense layers", "latent attention", "shared experts", "sparse attention"),
        is_batched=False,
        published_as="FP8",
    ),
    ModelFamily(
        "deepseek_v4",
        ("clamped_silu", "shared experts", "sparse attention"),
        is_batched=False,
        published_as="FP8 and FP4",
    ),
    ModelFamily("dots1", ("corrected router", "dense layers", "shared experts")),
    ModelFamily(
        "dots3_note_text",
        ("corrected router", "dense layers", "latent attention", "shared experts", "sparse attention"),
        is_batched=False,
    ),
    ModelFamily("ernie4_5_moe", ("corrected router", "dense layers", "shared experts")),
    ModelFamily("exaone_moe", ("corrected router", "dense layers", "shared experts", "sliding window")),
    ModelFamily("flex_olmo", ()),
    ModelFamily("flint", ("dense layers", "shared experts", "sliding window")),
    ModelFamily("gemma4_text", ("fused", "gelu_pytorch_tanh", "sliding window")),
    ModelFamily("glm4_moe", ("corrected router", "dense layers", "shared experts")),
    ModelFamily("glm4_moe_lite", ("corrected router", "dense layers", "latent attention", "shared experts")),
    ModelFamily(
        "glm_moe_dsa",
        ("corrected router", "dense layers", "latent attention", "shared experts", "sparse attention"),
        is_batched=False,
    ),
    ModelFamily(
        "gpt_oss", ("biases", "clamped_swiglu", "fused", "interleaved", "sliding window"), published_as="MXFP4"
    ),
    ModelFamily("granitemoe", ("fused",)),
    ModelFamily("granitemoe_swa", ("fused", "shared experts", "sliding window")),
    ModelFamily("granitemoehybrid", ("fused", "recurrent state", "shared experts"), is_batched=False),
    ModelFamily("granitemoeshared", ("fused", "shared experts")),
    ModelFamily("hunyuan_v1_moe", ("shared experts",)),
    ModelFamily("hy_v3", ("corrected router", "dense layers", "shared experts")),
    ModelFamily(
        "hy_v4",
        (
            "clamped_silu",
            "corrected router",
            "dense layers",
            "fused",
            "latent attention",
            "shared experts",
            "sparse attention",
        ),
        is_batched=False,
    ),
    ModelFamily(
        "inkling_text",
        ("corrected router", "fused", "recurrent state", "shared experts", "sliding window"),
        is_batched=False,
    ),
    ModelFamily("jamba", ("dense layers", "recurrent state"), is_batched=False),
    ModelFamily("jetmoe", ("fused",)),
    ModelFamily(
        "kimi_k2",
        ("corrected router", "dense layers", "latent attention", "shared experts"),
        published_as="INT4 or FP8",
    ),
    ModelFamily(
        "kimi_k25", ("corrected router", "dense layers", "latent attention", "shared experts"), published_as="INT4"
    ),
    ModelFamily(
        "kimi_linear",
        ("corrected router", "dense layers", "latent attention", "recurrent state", "shared experts"),
        is_batched=False,
    ),
    ModelFamily("kolibri1", ("corrected router", "shared experts", "sliding window")),
    ModelFamily("laguna", ("corrected router", "dense layers", "shared experts")),
    ModelFamily("lfm2_moe", ("corrected router", "dense layers", "recurrent state"), is_batched=False),
    ModelFamily("llama4", ("dense layers", "fused", "shared experts", "sliding window", "transposed")),
    ModelFamily("llama4_text", ("dense layers", "fused", "shared experts", "sliding window", "transposed")),
    ModelFamily("mellum", ()),
    ModelFamily("mimo_v2_flash", ("corrected router", "dense layers", "sliding window"), published_as="FP8"),
    ModelFamily("minimax", ("recurrent state",), is_batched=False),
    ModelFamily("minimax_m2", ("corrected router",), published_as="FP8"),
    ModelFamily("minimax_m3_vl_text", ("clamped_swiglu", "corrected router", "fused", "shared experts")),
    ModelFamily("mixtral", ("sliding window",)),
    ModelFamily(
        "nemotron_h",
        ("corrected router", "dense layers", "not gated", "recurrent state", "relu2", "shared experts"),
        is_batched=False,
    ),
    ModelFamily(
        "nllb-moe",
        ("biases", "dense layers", "encoder-decoder", "limited capacity", "not gated", "relu"),
        is_batched=False,
        test=NLLB,
    ),
    ModelFamily("olmoe", ()),
    ModelFamily("openmoe", ("dense layers", "doubly gated", "fused", "limited capacity", "transposed"), test=OWN),
    ModelFamily("phimoe", ("sliding window",)),
    ModelFamily("qwen2_moe", ("shared experts",)),
    ModelFamily("qwen3_5_moe_text", ("recurrent state", "shared experts"), is_batched=False),
    ModelFamily("qwen3_moe", ()),
    ModelFamily("qwen3_next", ("recurrent state", "shared experts"), is_batched=False),
    ModelFamily("qwen4_exp_text", ("recurrent state", "shared experts", "sparse attention"), is_batched=False),
    ModelFamily("solar_open", ("corrected router", "shared experts")),
    ModelFamily(
        "switch_transformers",
        ("dense layers", "encoder-decoder", "limited capacity", "not gated", "relu"),
        is_batched=False,
    ),
    ModelFamily("zaya", ("fused", "recurrent state"), is_batched=False),
)
VERIFIED: Final = {family.model_type: family for family in _VERIFIED}

SWEPT: Final = {name: family for name, family in VERIFIED.items() if family.test == SWEEP}

_NO_INTERFACE = "its experts do not have transformers' experts interface"
_SOFTCAPPED = "its experts' activation is softcapped, which no kernel here supports"

REFUSED: Final[dict[str, str]] = {
    "diffusion_gemma": "it generates blocks of text by diffusion, not one token after another",
    "doge": "its experts are rows of embedding tables, found by product keys, and not matrices",
    "ernie4_5_vl_moe": "its layers have two sets of experts each, of two sizes: for text and for images",
    "inkling2": _SOFTCAPPED,
    "inkling2_text": _SOFTCAPPED,
    "longcat_flash": f"{_NO_INTERFACE}, and some of them have no weights and return rows unchanged",
    "muse_spark": "its experts' outputs are normalised before they are weighted, which is not supported",
    "nemo_speechlm": "it transcribes speech, and is not prompted with text",
    "qwen3_omni_moe": "it is two models, one that thinks and one that speaks; qwen3_omni_moe_thinker is the former",
    "step3p7": "it clamps its experts' activation by layer, which no kernel here supports",
}
"""By model_type, the reason, as it follows "refused: "."""


def refusal(directory: Path) -> str | None:
    """Why the model's family is refused, in a sentence; None if it is not.

    A refused family fails at some point, with a message about tensors or classes. This message gives the cause.
    """
    try:
        path = snapshot_of(directory) / "config.json"
        model_type = model_type_of(read_json(path, ConfigError))
    except (CheckpointError, OSError):
        return None
    return f"{path}: model_type: {model_type} is refused: {REFUSED[model_type]}" if model_type in REFUSED else None
