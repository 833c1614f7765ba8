"""The native kernels compared with PyTorch and with the hardware's limits: `python -m benchmarks.kernel`."""
