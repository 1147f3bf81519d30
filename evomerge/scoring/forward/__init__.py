"""Tokens through a model, none twice: packed batches, shared prefixes, attention masks. Knows no lm-eval."""
