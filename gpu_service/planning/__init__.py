"""Decides where each expert of a step is computed. Knows no tensors."""
