"""Models on disk and live: checkpoints, adapters, tokenizers, tensor names, and loading by transformers.

`family` brings the base and the experts under the live model's names and shapes. It uses `input` (one model as its
headers describe it), `configs`, `agreement`, `conversion`, `adapters`, `token_rows` and `overlays`. There are no
tables of architectures.
`batching`, `source` and `tensor_names` import without torch.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]  # told a line before each step that may take long
NOTE = "note: "  # begins a line that is no step but something to know
