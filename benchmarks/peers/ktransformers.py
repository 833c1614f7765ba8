"""KTransformers' kernels in place of transformers' experts, called as its own wrappers call them.

kt-kernel computes experts only; around them KTransformers uses SGLang on a GPU. Without one, transformers computes the
rest here, in the same process.
"""

import importlib
import tempfile
from typing import Any, Final

import torch
from torch import nn

METHODS: Final = {"bf16": "AMXBF16_MOE", "int8": "AMXInt8_MOE", "int4": "AMXInt4_MOE"}
"""The kernels, by the format of the experts; int8 and int4 have a scale for each output. All run with AVX-512, too."""

_MOST_TOKENS: Final = 512


def replace_experts(model: Any, method: str, threads: int) -> None:
    """Makes the MoE block of every layer compute its experts with the kernel, and frees transformers' copy.

    Args:
        model: In bf16 on the CPU.
        method: Of METHODS.
        threads: That compute.
    """
    extension: Any = importlib.import_module("kt_kernel").kt_kernel_ext
    pool = extension.WorkerPoolConfig()
    pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [threads]
    engine = extension.CPUInfer(pool)
    kernel = getattr(extension.moe, METHODS[method], None)
    if kernel is None:
        raise SystemExit(f"kt-kernel has no {METHODS[method]} for this CPU")
    top_k = model.config.num_experts_per_tok
    for number, layer in enumerate(model.model.layers):
        gate, up = layer.mlp.experts.gate_up_proj.chunk(2, dim=1)
        down = layer.mlp.experts.down_proj
        layer.mlp.experts = Experts(extension, engine, kernel, number, gate=gate, up=up, down=down, top_k=top_k)


class Experts(nn.Module):
    """One layer's, with the signature of transformers' own."""

    def __init__(
        self,
        extension: Any,
        engine: Any,
        kernel: Any,
        layer: int,
        *,
        gate: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
        top_k: int,
    ) -> None:
        """Gives the kernel its own copy of the weights, in its own layout.

        Args:
            extension: The library of kt-kernel.
            engine: Its threads.
            kernel: The class of the kernel.
            layer: The layer's number.
            gate: [experts, intermediate, hidden] bf16.
            up: The same shape.
            down: [experts, hidden, intermediate] bf16.
            top_k: Experts of a token.
        """
        super().__init__()
        num_experts, intermediate, hidden = gate.shape
        self._engine = engine
        self._on_gpu = torch.zeros(num_experts, dtype=torch.bool)
        config = extension.moe.MOEConfig(num_experts, top_k, hidden, intermediate, self._on_gpu.data_ptr())
        config.layer_idx, config.pool, config.max_len = layer, engine.backend_, _MOST_TOKENS
        weights = [matrix.contiguous() for matrix in (gate, up, down)]
        if kernel is getattr(extension.moe, METHODS["bf16"], None):
            pointers = [[[expert.data_ptr() for expert in matrix]] for matrix in weights]
            config.gate_projs, config.up_projs, config.down_projs = pointers
            none = [[0] * num_experts]
            config.gate_scales, config.up_scales, config.down_scales = none, none, none
        else:
            config.gate_proj, config.up_proj, config.down_proj = (matrix.data_ptr() for matrix in weights)
            config.load, config.save, config.path = False, False, tempfile.gettempdir()
        self._kernel = kernel(config)
        order = torch.arange(num_experts, dtype=torch.int64)
        engine.submit(self._kernel.load_weights_task(order.data_ptr()))
        engine.sync()

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] bf16: the sum over each token's experts."""
        rows = hidden.contiguous()
        ids, weights = top_k_index.to(torch.int64).contiguous(), top_k_weights.float().contiguous()
        count, output = torch.tensor([len(rows)], dtype=torch.int32), torch.empty_like(rows)
        task = self._kernel.forward_task(
            count.data_ptr(),
            ids.shape[1],
            ids.data_ptr(),
            weights.data_ptr(),
            rows.data_ptr(),
            output.data_ptr(),
            False,
        )
        self._engine.submit(task)
        self._engine.sync()
        return output
