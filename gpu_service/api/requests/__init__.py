"""Turns requests into what the engine and the tokenizer take. An error names the field."""
