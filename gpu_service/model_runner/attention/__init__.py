"""Attention of the dense part: which function a model calls, and what computes it in its place."""
