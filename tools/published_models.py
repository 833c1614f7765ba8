"""Sizes of published models, from their config.json files on the Hugging Face hub, as written there in 2025."""

from dataclasses import dataclass
from typing import Final

BYTES_PER_WEIGHT: Final = {"bfloat16": 2.0, "FP8": 1.0, "MXFP4": 0.53125, "int4": 0.5625}
"""Of an expert's weights, with their scales; README's table of formats has them too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """One model of the hub.

    Attributes:
        name: ORG/NAME.
        family: model_type of config.json.
        layers: Layers with experts.
        hidden: hidden_size.
        intermediate: Features within an expert.
        experts: Routed experts of a layer.
        chosen: Routed experts of a token.
        billions: Parameters in all, without layers that predict further tokens.
        stored_as: How the experts are published; a key of BYTES_PER_WEIGHT.
    """

    name: str
    family: str
    layers: int
    hidden: int
    intermediate: int
    experts: int
    chosen: int
    billions: float
    stored_as: str = "bfloat16"

    @property
    def weights_of_an_expert(self) -> int:
        """Three matrices: gate, up and down."""
        return 3 * self.hidden * self.intermediate

    @property
    def expert_weights(self) -> int:
        """Of all experts in all layers."""
        return self.layers * self.experts * self.weights_of_an_expert

    @property
    def dense_weights(self) -> int:
        """Of everything else: attention, embeddings, routers, shared experts, dense layers."""
        return round(self.billions * 1e9) - self.expert_weights


def _model(
    name: str, family: str, sizes: tuple[int, int, int, int, int], billions: float, stored_as: str = "bfloat16"
) -> PublishedModel:
    layers, hidden, intermediate, experts, chosen = sizes
    return PublishedModel(
        name=name,
        family=family,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        experts=experts,
        chosen=chosen,
        billions=billions,
        stored_as=stored_as,
    )


MODELS: Final = (
    # layers with experts, hidden size, features of an expert, experts of a layer, experts of a token
    _model("allenai/OLMoE-1B-7B-0924", "olmoe", (16, 2048, 1024, 64, 8), 6.92),
    _model("Qwen/Qwen1.5-MoE-A2.7B", "qwen2_moe", (24, 2048, 1408, 60, 4), 14.32),
    _model("deepseek-ai/DeepSeek-V2-Lite", "deepseek_v2", (26, 2048, 1408, 64, 6), 15.71),
    _model("moonshotai/Moonlight-16B-A3B", "deepseek_v3", (26, 2048, 1408, 64, 6), 15.96),
    _model("openai/gpt-oss-20b", "gpt_oss", (24, 2880, 2880, 32, 4), 20.91, "MXFP4"),
    _model("baidu/ERNIE-4.5-21B-A3B-PT", "ernie4_5_moe", (27, 2560, 1536, 64, 6), 21.83),
    _model("Qwen/Qwen3-30B-A3B", "qwen3_moe", (48, 2048, 768, 128, 8), 30.53),
    _model("microsoft/Phi-3.5-MoE-instruct", "phimoe", (32, 4096, 6400, 16, 2), 41.87),
    _model("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral", (32, 4096, 14336, 8, 2), 46.70),
    _model("Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen3_next", (48, 2048, 512, 512, 10), 79.67),
    _model("zai-org/GLM-4.5-Air", "glm4_moe", (45, 4096, 1408, 128, 8), 106.85),
    _model("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4", (48, 5120, 8192, 16, 1), 107.77),
    _model("openai/gpt-oss-120b", "gpt_oss", (36, 2880, 2880, 128, 4), 116.83, "MXFP4"),
    _model("mistralai/Mixtral-8x22B-Instruct-v0.1", "mixtral", (56, 6144, 16384, 8, 2), 140.63),
    _model("MiniMaxAI/MiniMax-M2", "minimax_m2", (62, 3072, 1536, 256, 8), 228.70, "FP8"),
    _model("Qwen/Qwen3-235B-A22B", "qwen3_moe", (94, 4096, 1536, 128, 8), 235.09),
    _model("zai-org/GLM-4.5", "glm4_moe", (89, 5120, 1536, 160, 8), 352.80),
    _model("Qwen/Qwen3-Coder-480B-A35B-Instruct", "qwen3_moe", (62, 6144, 2560, 160, 8), 480.15),
    _model("deepseek-ai/DeepSeek-V3", "deepseek_v3", (58, 7168, 2048, 256, 8), 671.03, "FP8"),
    _model("moonshotai/Kimi-K2-Thinking", "kimi_k2", (60, 7168, 2048, 384, 8), 1026.41, "int4"),
)
