"""Turns calls into requests and events into messages. `generations.py` is its core and knows no transport."""
