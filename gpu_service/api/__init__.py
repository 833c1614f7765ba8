"""Turns calls into requests and events into messages; `generations.py` is the core and knows no transport."""
