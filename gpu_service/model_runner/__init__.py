"""Runs transformers' model over rows of a KV cache."""
