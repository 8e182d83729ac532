"""A Hugging Face model folder, read without Hugging Face code: config, weights, tokenizer."""
