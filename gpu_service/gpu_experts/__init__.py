"""Experts that are resident on the GPU or streamed to it: slots, copies and their computation."""
