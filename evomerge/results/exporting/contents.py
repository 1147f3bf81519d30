"""What an exported folder holds: weights, config, tokenizer, recipe, mergekit configuration, scores and card."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from evomerge.models import rope
from evomerge.recipes import files
from evomerge.results.exporting.model_card import model_card
from evomerge.studies.candidates.workbench import Built, Workbench
from evomerge.studies.folder import DELTAS

ABOUT = "evomerge.json"  # the file that says where the model comes from

# The files of a tokenizer, which are copied from the base's folder.
_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
_SHARD = "4GB"  # the greatest size of a weights file


@dataclass(frozen=True)
class Origin:
    """What is known of a model besides its recipe.

    Attributes:
        weights_sha256: the hash of the weights that were scored; None if it is not known.
        scores: the trial's number and scores; None if the model is no trial of a study.
        certificate: the result of `evomerge certify` for the same recipe; None if there is none.
    """

    weights_sha256: str | None = None
    scores: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None


def write(folder: Path, bench: Workbench, built: Built, digest: str, origin: Origin, mergekit: str | None) -> None:
    """Fills an empty folder with all that an export holds.

    Args:
        folder: the folder to fill.
        bench: the workbench that built the model.
        built: the live model and its recipe.
        digest: the hash of the model's weights.
        origin: what is known of the model besides its recipe.
        mergekit: the text of mergekit's configuration of the same merge; None where mergekit cannot express it.
    """
    recipe = built.recipe
    _write_model(folder, bench, built)
    (folder / "recipe.yaml").write_text(files.recipe_to_yaml(recipe), encoding="utf-8")
    if mergekit is not None:
        (folder / "mergekit.yaml").write_text(mergekit, encoding="utf-8")
    about = {
        "recipe": recipe.sha256,
        "weights_sha256": digest,
        "scores": origin.scores,
        "certificate": origin.certificate,
    }
    if built.training_records:
        about["training"] = dict(built.training_records)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    card = model_card(recipe, digest, origin.scores, origin.certificate, mergekit=mergekit is not None)
    card.save(folder / "README.md")


def read_about(folder: Path) -> dict[str, Any]:
    """The evomerge.json of an exported folder, which says where its model comes from."""
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return about


def _write_model(folder: Path, bench: Workbench, built: Built) -> None:
    """Writes weights, configs, tokenizer, and the tensors that training left."""
    # The base's own generation config is copied below, because transformers loads some that it refuses to save.
    built.model.generation_config = GenerationConfig()
    built.model.save_pretrained(folder, max_shard_size=_SHARD)
    if built.recipe.operators:
        _write_portable(folder / "config.json")
    for name, file in built.files.items():
        (folder / DELTAS).mkdir(exist_ok=True)
        shutil.copy(file, folder / DELTAS / f"{name}.safetensors")
    _copy(bench.folder, folder, "generation_config.json", *(() if bench.added else _TOKENIZER))
    if bench.added:
        bench.tokenizer.save_pretrained(folder)


def _copy(folder: Path, out: Path, *patterns: str) -> None:
    """Copies the files of a folder whose names match a pattern."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copy(file, out / file.name)


def _write_portable(path: Path) -> None:
    """Rewrites a config.json so that it describes positions in the keys that older readers know, too."""
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(rope.portable(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
