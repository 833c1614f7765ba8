"""Explains the words in the table of families: the structures of models, and how families were verified."""

from dataclasses import dataclass
from typing import Final

from gpu_service.models.families import NLLB, OWN, SWEEP


@dataclass(frozen=True, slots=True)
class Method:
    """How a test verifies a family."""

    short: str
    long: str


_NOTICED: Final = "A test shows that 1 % more in one matrix of one expert is noticed"
METHODS: Final[dict[str, Method]] = {
    SWEEP: Method(
        "transformers",
        "32 greedy tokens after each of three prompts, from 3 to 70 tokens long, are those of transformers in float32, "
        "alone and batched with others, and every logit agrees within 5e-5 of the largest; through both services as "
        f"processes (`make sweep`), the tokens and their log probabilities agree, too. {_NOTICED}",
    ),
    OWN: Method(
        "the paper",
        "32 greedy tokens after each of three prompts, and their logits, are those of a plain float64 reference "
        f"written from the paper, through both services, alone and batched with others. {_NOTICED}",
    ),
    NLLB: Method(
        "transformers, corrected",
        "32 greedy tokens, and their logits, are those of transformers in float32 with the sum of a token's experts "
        f"corrected (gpu_service/models/nllb_moe.py explains the fault), through both services. {_NOTICED}",
    ),
}

FEATURES: Final = {
    "biases": "experts add biases to the outputs of their matrices",
    "clamped_silu": "experts' gate and up are clamped before SiLU and their product",
    "clamped_swiglu": "experts' gate and up are clamped, and one is added to up (gpt-oss)",
    "corrected router": "a learnt correction is added to the router's scores for choosing experts, not for weighting",
    "dense layers": "some layers, mostly the first, have an MLP instead of experts",
    "doubly gated": "an expert has four matrices: its gate is itself gated",
    "encoder-decoder": "an encoder reads the prompt, a decoder generates",
    "fused": "all experts of a layer are stored in one tensor, gate and up in one matrix",
    "gelu": "experts' activation is GELU",
    "gelu_pytorch_tanh": "experts' activation is GELU approximated with tanh",
    "interleaved": "rows of gate and up alternate in their tensor",
    "latent attention": "keys and values are computed from a compressed vector (DeepSeek's MLA)",
    "limited capacity": "an expert takes a limited number of a prompt's tokens, as published",
    "not gated": "an expert has two matrices, up and down",
    "plain": "none of these: experts of three matrices each, SiLU, softmax, keys and values",
    "recurrent state": "some layers keep a state that each token changes: linear attention, state spaces, convolutions",
    "relu": "experts' activation is ReLU",
    "relu2": "experts' activation is the square of ReLU",
    "shared experts": "every token goes through some experts in addition to those that it is routed to",
    "sliding window": "some layers attend to the latest tokens only",
    "sparse attention": "some layers attend to tokens that an indexer chooses, or to compressed ones",
    "transposed": "matrices are stored as [in, out]",
}
"""By the names in gpu_service.models.families.ModelFamily.features."""
