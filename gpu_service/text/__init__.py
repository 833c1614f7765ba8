"""Text: tokenizer, stop strings, detokenizer."""
