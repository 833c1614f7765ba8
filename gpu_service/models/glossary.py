"""What the words in the table of families mean: the structures that families have, and the ways they were verified."""

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
        "alone and beside others, and every logit agrees within 5e-5 of the largest; through both services as "
        f"processes (`make sweep`), the tokens and their log probabilities agree, too. {_NOTICED}",
    ),
    OWN: Method(
        "the paper",
        "32 greedy tokens after each of three prompts, and their logits, are those of a plain float64 reference "
        f"written from the paper, through both services, alone and beside others. {_NOTICED}",
    ),
    NLLB: Method(
        "transformers, mended",
        "32 greedy tokens, and their logits, are those of transformers in float32 with the sum of a token's experts "
        f"mended (gpu_service/models/nllb_moe.py says what is wrong with it), through both services. {_NOTICED}",
    ),
}

FEATURES: Final = {
    "biases": "experts add biases to what their matrices give",
    "clamped_silu": "experts' gate and up are clamped before SiLU and their product",
    "clamped_swiglu": "experts' gate and up are clamped, and one is added to up (gpt-oss)",
    "corrected router": "a learnt correction is added to the router's scores for choosing, and not for weighting",
    "dense layers": "some layers, mostly the first, have an MLP instead of experts",
    "doubly gated": "an expert has four matrices: its gate is gated itself",
    "encoder-decoder": "an encoder reads the prompt, a decoder writes",
    "fused": "a layer's experts lie in one tensor, gate and up in one matrix",
    "gelu": "experts' activation is GELU",
    "gelu_pytorch_tanh": "experts' activation is GELU by way of tanh",
    "interleaved": "rows of gate and up alternate in their tensor",
    "latent attention": "keys and values are computed from a compressed vector (DeepSeek's MLA)",
    "limited capacity": "an expert takes only so many tokens of a prompt, as published",
    "not gated": "an expert has two matrices, up and down",
    "plain": "none of these: experts of three matrices each, SiLU, softmax, keys and values",
    "recurrent state": "some layers keep a state that each token changes: linear attention, state spaces, convolutions",
    "relu": "experts' activation is ReLU",
    "relu2": "experts' activation is the square of ReLU",
    "shared experts": "every token goes through some experts beside those that it is routed to",
    "sliding window": "some layers attend to the latest tokens only",
    "sparse attention": "some layers attend to the tokens that an indexer chooses, or to compressed ones",
    "transposed": "matrices lie as [in, out]",
}
"""By the names in gpu_service.models.families.ModelFamily.features."""
