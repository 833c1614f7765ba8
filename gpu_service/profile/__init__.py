"""Counts which experts a model chooses on given prompts: `python -m gpu_service.profile`.

What it writes is the popularity file of the placement policies popularity and adaptive.
"""
