"""`python -m benchmarks.kernel`: the native kernels beside PyTorch and beside a loop that only reads.

kernel.read.streamsN                       GB/s of the read loop over the experts, each thread's share as N streams
kernel.bf16.m1.fraction_of_read_bandwidth  one row in one expert of Mixtral's size, over the fastest of those
kernel.bf16.mN.CASE                        ms for N rows in one expert; CASE is ours, torch, or fp32_gemm
kernel.bf16.mN.speedup_over_torch          torch over ours, round by round
kernel.bf16.mN.speedup_over_fp32_gemm      PyTorch's float32 on weights widened beforehand, over ours
kernel.bf16.mN.fraction_of_fma_peak        operations per second over those of a loop of float32 multiply-adds that
                                           touches no memory (peak.c); vdpbf16ps can exceed it
kernel.bf16.mN.fraction_of_dot_peak        the same over a loop of vdpbf16ps, where the tier has it
kernel.bf16.mN.fraction_of_tiles_peak      the same over a loop of AMX tile products, where the tier has them
kernel.bf16.mN.fraction_of_read_bandwidth  the time of reading the expert's bytes once, over ours
kernel.bf16.mN.torch_over_read             torch over that time: no kernel's speedup_over_torch is larger
kernel.bf16.m1.TIER_over_avx512            time of another tier over that of avx512
kernel.bf16.m1.ram_over_mmap               time from copies in huge pages over that from the mapped file
kernel.qwen3_30b_a3b.*                     a layer of 128 small experts, 8 for each token
kernel.layer.fixed_cost                    microseconds of one call with experts so small that they cost nothing
kernel.scaling.threadsT.mN, .torch.mN      ms against rows and threads: docs/kernel_scaling.svg

PyTorch's products are oneDNN's, which takes all instructions that the CPU has. ONEDNN_MAX_CPU_ISA in the environment
holds it back, e.g. to AVX512_CORE: a CPU with AVX-512 but without BF16 and AMX. The result's first line says so.

Every round goes through all cases in turn. Weights are in a mapped file, as the service has them; experts take turns,
so that more than a gigabyte lies between two uses of the same one.
"""
