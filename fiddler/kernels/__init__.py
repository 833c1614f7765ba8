"""The native kernels, which both services load: the library, its threads, and the CPUs that they are pinned to."""
