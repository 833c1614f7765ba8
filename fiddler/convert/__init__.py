"""Writes checkpoints in 8 and 4 bits: standard compressed-tensors checkpoints, out of any that the services read."""
