"""What this machine has, as the system shows it: GPUs. It imports neither torch nor a service."""
