"""`python -m benchmarks.peers.transformers_worker MODEL THREADS [METHOD]`: transformers, in bf16 on the CPU.

With a METHOD, its experts are computed by KTransformers' kernels, and this runs in the peers' environment.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.answering import answer, libraries_kept_silent
from benchmarks.peers.ktransformers import replace_experts


def main(directory: str, threads: int, method: str = "") -> None:
    """Loads the model, and answers until the input ends."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    with libraries_kept_silent():
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        model.eval()
        if method:
            replace_experts(model, method, threads)
    caches: list[Any] = []

    def step(tokens: Sequence[int]) -> int:
        past = caches.pop() if caches else None
        output = model(torch.tensor([list(tokens)]), past_key_values=past, use_cache=True, logits_to_keep=1)
        caches.append(output.past_key_values)
        return int(output.logits[0, -1].argmax())

    caches.clear()
    step([1, 2, 3])
    answer(caches.clear, step)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
