"""Spans of several sequences in one forward: their tokens are packed into one row, and attention sees each apart."""
