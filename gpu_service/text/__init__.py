"""Characters: tokenizer, stop strings, detokenizer."""
