"""The settings of a generation_config.json by what is done with them. Imports no torch."""

from typing import Final

TOKEN_IDS: Final = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id")
SAMPLING: Final = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
NOT_COMPUTED: Final[dict[str, float | None]] = {
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": None,
}
"""Settings that change which token is chosen and are not computed here, with the value that changes nothing."""

READ: Final = frozenset({*TOKEN_IDS, *SAMPLING, *NOT_COMPUTED})
"""All others concern what a request says, or how transformers computes, and are left out whatever they hold."""
