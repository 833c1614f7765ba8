"""Counts which experts a model chooses on given prompts: `python -m gpu_service.profile`.

It writes the popularity file that the placement policies popularity and adaptive read.
"""
