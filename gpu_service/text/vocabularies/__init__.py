"""Tokenizers from vocabularies other than tokenizer.json: sentencepiece models, and Kimi's and OpenMoE's files."""
