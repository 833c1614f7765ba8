"""Batches: which spans of which generations one forward computes. Imports no torch."""
