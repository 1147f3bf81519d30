"""Checks that an exported folder loads as the model that it was written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evomerge.errors import StudyError
from evomerge.models.checkpoints import Checkpoint
from evomerge.models.live_weights import weights_sha256
from evomerge.models.loading import load_model, load_tokenizer
from evomerge.studies.candidates.workbench import Built, Workbench


def compare(folder: Path, bench: Workbench, built: Built, digest: str) -> None:
    """Loads a folder with transformers and compares it with the live model.

    Args:
        folder: the folder that was written.
        bench: the workbench that built the model.
        built: the live model and its recipe.
        digest: the hash of the live model's weights.

    Raises:
        StudyError: the folder loads with other weights, another config or another tokenizer.
    """
    trust = built.recipe.base.trusted
    loaded = load_model(folder, built.recipe.dtype, "cpu", trust=trust)
    files = Checkpoint(folder, str(folder))
    reloaded = weights_sha256(loaded, {name: files[name] for name in bench.merger.weights.carried})
    if reloaded != digest:
        raise StudyError(
            f"{folder}: the folder loads as {reloaded[:12]} and not as {digest[:12]}; please report this"
        )
    if built.recipe.operators and not torch.equal(_some_logits(loaded), _some_logits(built.model)):
        raise StudyError(f"{folder}: the folder's config does not load as it was scored; please report this")
    if bench.added and load_tokenizer(folder, trust=trust).get_vocab() != bench.tokenizer.get_vocab():
        raise StudyError(f"{folder}: the tokenizer does not load as it was written; please report this")


def _some_logits(model: Any) -> torch.Tensor:
    """The logits of a few tokens, on the CPU. Models with equal weights and configs have equal logits."""
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits.cpu()
    return logits
