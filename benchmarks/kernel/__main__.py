"""The command line; what is measured is said in the package."""

import benchmarks.kernel
from benchmarks.harness.results import report
from benchmarks.harness.targets import Judge, Target
from benchmarks.kernel import layers, mixtral
from benchmarks.kernel.peak import Peak
from benchmarks.kernel.weights import mapped
from cpu_expert_service.cpus import choose_cpus, read_topology
from cpu_expert_service.kernel import PyTorchKernel
from cpu_expert_service.native import Pool, available_tiers
from cpu_expert_service.native_kernel import NativeKernel

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
}


def main() -> None:
    """Runs the benchmark."""
    cpus = choose_cpus(read_topology())
    options = (("--quick", False), ("--tier", available_tiers()[-1]))
    with report(benchmarks.kernel.__doc__, *options) as (out, arguments), mapped() as weights:
        judge = Judge(out, TARGETS)
        pools = [Pool(cpus[:count]) for count in range(1, len(cpus) + 1)]
        kernel = NativeKernel(pools[-1], arguments.tier)
        PyTorchKernel(len(cpus))  # tells PyTorch how many threads to take
        few, many = (5, 3) if arguments.quick else (31, 15)
        # before PyTorch has threads that spin
        layers.measure_fixed_cost(judge, weights, kernel, few)
        mixtral.measure(judge, pools[-1], Peak(cpus, arguments.tier), weights, kernel, few, many)
        layers.measure_qwen(judge, pools[-1], weights, kernel, few)
        shown = (pools[0], pools[-1]) if len(pools) > 1 else (pools[0],)
        scaled = (2, 64) if arguments.quick else (7, layers.SCALING_ROWS[-1])
        layers.measure_scaling(judge, list(shown), weights, arguments.tier, *scaled)
        judge.summarise()
        for pool in pools:
            pool.close()


if __name__ == "__main__":
    main()
