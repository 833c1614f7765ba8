"""Decides which experts stay on the GPU."""
