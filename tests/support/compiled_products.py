"""`python -m tests.support.compiled_products` compiles the kernel of experts in place; it takes no GPU."""

from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpu_service.gpu_experts.in_place import _INPUTS, _PLAIN
from gpu_service.gpu_experts.products_kernel import MIN_ROWS, OUTPUTS_AT_ONCE, products

_ADDRESSES = {"rows": "*bf16", "facts": "*i64", "results": "*fp32"}
_NUMBERS = {"num_rows": "i32", "num_inputs": "i32", "num_outputs": "i32"}
_BLOCKS_OF_4_BITS = {
    "CODE": 4,
    "STORED": tl.bfloat16,
    "SCALE": 1,
    "GROUP_INPUTS": 32,
    "GROUP_OUTPUTS": 1,
    "HAS_ZEROS": True,
}
_ALIGNED = ("rows", "facts", "results", "num_inputs", "num_outputs")


def compile_for(capability: int, **constants: Any) -> str:
    """The assembly of the kernel for 16-bit rows on a GPU of a compute capability, such as 90."""
    constants |= {
        "OWN_ROWS": True,
        "FACTORS": tl.bfloat16,
        "ROWS": MIN_ROWS,
        "OUTPUTS": OUTPUTS_AT_ONCE,
        "INPUTS": _INPUTS[2],
    }
    signature = _ADDRESSES | _NUMBERS | dict.fromkeys(constants, "constexpr")
    names = list(signature)
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in _ALIGNED}
    source = ASTSource(products, signature, constants, hints)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    return str(compiled.asm["ptx"])


def main() -> None:
    """Compiles it for the oldest and a newer capability, and for coded weights."""
    plain = _PLAIN | {"STORED": tl.bfloat16, "BIAS": None}
    for capability in (80, 90):
        assembly = compile_for(capability, **plain)
        assert "mma" in assembly, "products are not computed by the tensor cores"
        assert "cp.async.cg.shared.global" in assembly, "weights are not read 16 bytes at a time"
    assert "mma" in compile_for(90, **_BLOCKS_OF_4_BITS, BIAS=tl.bfloat16)


if __name__ == "__main__":
    main()
