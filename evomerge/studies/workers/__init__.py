"""Who evaluates candidates: this process, or Ray's workers."""
