"""`python -m benchmarks.kernel`: the native kernels compared with PyTorch and with a loop that only reads.

kernel.read.streamsN                       GB/s of a loop that reads the experts, in N streams for each thread
kernel.bf16.m1.fraction_of_read_bandwidth  one row in one expert of Mixtral's size, over the fastest of these loops
kernel.bf16.mN.CASE                        ms for N rows in one expert; CASE is ours, torch, or fp32_gemm
kernel.bf16.mN.speedup_over_torch          torch over ours, round by round
kernel.bf16.mN.speedup_over_fp32_gemm      PyTorch's float32 on weights widened beforehand, over ours
kernel.bf16.mN.fraction_of_fma_peak        operations per second over those of a loop of float32 multiply-adds that
                                           touches no memory (peak.c); vdpbf16ps can exceed it
kernel.bf16.mN.fraction_of_dot_peak        the same over a loop of vdpbf16ps, if the tier has it
kernel.bf16.mN.fraction_of_tiles_peak      the same over a loop of AMX tile products, if the tier has them
kernel.bf16.mN.fraction_of_read_bandwidth  the time of reading the expert's bytes once, over ours
kernel.bf16.mN.torch_over_read             torch over that time: the upper bound of any kernel's speedup_over_torch
kernel.bf16.m1.TIER_over_avx512            time of another tier over that of avx512
kernel.bf16.m1.ram_over_mmap               time with copies in huge pages over that with the mapped file
kernel.qwen3_30b_a3b.*                     a layer of 128 small experts, 8 for each token
kernel.FORMAT.mN.speedup_over_bf16         bf16 over the same expert in FORMAT, which is int8, fp8, int4 or mxfp4
kernel.FORMAT.m1.fraction_of_read_bandwidth  the time of reading its packed bytes once, over ours
kernel.FORMAT.qwen3_30b_a3b.*              the same for a layer of small experts
kernel.layer.fixed_cost                    us of one call with experts too small to cost anything
kernel.scaling.threadsT.mN, .torch.mN      ms against rows and threads: docs/kernel_scaling.svg

PyTorch's products are oneDNN's, which uses all instructions of the CPU. ONEDNN_MAX_CPU_ISA in the environment limits
them, e.g. to AVX512_CORE: a CPU with AVX-512 but without BF16 and AMX. The first line of the results then has it.

Every round goes through all cases in turn. Weights are in a mapped file, as in the service. Calls use all experts in
turn: more than a gigabyte is read between two uses of the same one.
"""

from typing import Annotated

import typer

from benchmarks.harness.results import Append, Out, Quick, Tier, report
from benchmarks.harness.targets import Judge, Target
from benchmarks.kernel import coded, layers, mixtral
from benchmarks.kernel.peak import Peak
from benchmarks.kernel.weights import mapped
from cpu_expert_service.kernel import PyTorchKernel
from cpu_expert_service.native_kernel import NativeKernel
from fiddler.kernels.cpus import choose_cpus, read_topology
from fiddler.kernels.native import Pool, available_tiers
from tools.command_line import run

TARGETS = {
    "kernel.bf16.m1.fraction_of_read_bandwidth": Target(0.90),
    "kernel.bf16.m1.speedup_over_torch": Target(1.8),
    "kernel.bf16.m2.speedup_over_torch": Target(1.6),
    "kernel.bf16.m4.speedup_over_torch": Target(3.5),
    "kernel.bf16.m8.speedup_over_torch": Target(3.5),
    "kernel.bf16.m16.speedup_over_torch": Target(4.0),
    "kernel.bf16.m64.speedup_over_torch": Target(3.5),
    "kernel.bf16.m256.speedup_over_torch": Target(3.3),
    "kernel.bf16.m64.speedup_over_fp32_gemm": Target(1.0),
    "kernel.bf16.m256.speedup_over_fp32_gemm": Target(1.0),
    "kernel.qwen3_30b_a3b.m1.fraction_of_read_bandwidth": Target(0.85),
    "kernel.qwen3_30b_a3b.m64.speedup_over_torch": Target(3.0),
    "kernel.bf16.m1.avx2_over_avx512": Target(1.10, at_least=False),
    "kernel.layer.fixed_cost": Target(30, at_least=False),
    **coded.TARGETS,
}


def main(
    out: Out = None,
    append: Append = False,
    quick: Quick = False,
    tier: Tier = None,
    only_formats: Annotated[bool, typer.Option(help="Measures experts in 8 and 4 bits, and nothing else.")] = False,
) -> None:
    """Runs the benchmark."""
    tier = tier or available_tiers()[-1]
    cpus = choose_cpus(read_topology())
    with report(out, append) as results, mapped() as weights:
        judge = Judge(results, TARGETS)
        pools = [Pool(cpus[:count]) for count in range(1, len(cpus) + 1)]
        kernel = NativeKernel(pools[-1], tier)
        PyTorchKernel(len(cpus))  # sets PyTorch's number of threads
        few, many = (5, 3) if quick else (31, 15)
        if only_formats:
            coded.measure(judge, kernel, pool=pools[-1], weights=weights, rounds=few)
            judge.summarise()
            return
        # before PyTorch has threads that spin
        layers.measure_fixed_cost(judge, kernel, weights=weights, rounds=few)
        peak = Peak(cpus, tier)
        mixtral.measure(judge, kernel, pool=pools[-1], peak=peak, weights=weights, few=few, many=many)
        coded.measure(judge, kernel, pool=pools[-1], weights=weights, rounds=few)
        layers.measure_qwen(judge, kernel, pool=pools[-1], weights=weights, rounds=few)
        shown = (pools[0], pools[-1]) if len(pools) > 1 else (pools[0],)
        rounds, most_rows = (2, 64) if quick else (7, layers.SCALING_ROWS[-1])
        layers.measure_scaling(judge, list(shown), tier, weights=weights, rounds=rounds, most_rows=most_rows)
        judge.summarise()
        for pool in pools:
            pool.close()


if __name__ == "__main__":
    run(main, __doc__)
