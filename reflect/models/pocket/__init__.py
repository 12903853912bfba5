"""The built-in pocket model: weights, tokenizer and chat template."""
