"""Models on disk and live: checkpoints, adapters, tokenizers, tensor names, and what transformers makes of them."""
