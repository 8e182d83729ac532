"""Reads a Hugging Face model folder without Hugging Face code: config, weights, tokenizer."""
