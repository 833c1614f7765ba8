"""`python -m benchmarks.peers.llama_worker FILE THREADS`: a worker that computes with llama.cpp.

Runs in the peers' environment.
"""

import ctypes
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from benchmarks.peers.answering import answer, libraries_kept_silent

_CONTEXT: Final = 1024
_BATCH: Final = 512


def main(file: str, threads: int) -> None:
    """Loads the model, and answers until the input ends."""
    with libraries_kept_silent():
        llama: Any = importlib.import_module("llama_cpp")
        llama.llama_backend_init()
        model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
        if not model:
            sys.exit(f"{file}: llama.cpp cannot load it")
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = _CONTEXT, _BATCH, _BATCH
        params.n_threads = params.n_threads_batch = threads
        context = llama.llama_init_from_model(model, params)
        vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def begin() -> None:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)

    def step(tokens: Sequence[int]) -> int:
        ids = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(context, llama.llama_batch_get_one(ids, len(tokens))):
            sys.exit(f"{file}: llama.cpp cannot compute {len(tokens)} tokens")
        logits = ctypes.cast(llama.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(logits, (vocab_size,)).argmax())

    begin()
    step([1, 2, 3])
    answer(begin, step)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
