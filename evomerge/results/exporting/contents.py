"""What an exported folder holds: weights, config, tokenizer, recipe, mergekit configuration, scores and card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from evomerge.models import rope
from evomerge.recipes import files
from evomerge.results.exporting import carried
from evomerge.results.exporting.model_card import model_card
from evomerge.studies.candidates.workbench import Built, Workbench
from evomerge.studies.folder import DELTAS

ABOUT = "evomerge.json"  # the file that says where the model comes from

# What goes along from the base's folder: configs, tokenizer, processor, chat templates, licence.
_ALONG = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.bpe", "*.spm", "LICENSE*", "NOTICE*")
_CODE = ("*.py",)  # goes along where it is trusted
_FOLDERS = ("additional_chat_templates",)
# What does not: these describe the base's weights, or how they were made.
_LEFT = (
    "config.json",
    "*.index.json",
    "adapter_config.json",
    "trainer_state.json",
    "*_results.json",
    "evomerge.json",
)
_SHARD = "4GB"  # the greatest size of a weights file


@dataclass(frozen=True)
class Merges:
    """The merges, one after another, of which a model is the last one's result. The results before it are gone.

    Attributes:
        text: the file with all of them, in which local models have absolute paths.
        shown: the same without paths of this machine.
        models: the models that are no results, as they stand in the file.
        weights: the name of each result before the last -> the hash of its weights.
    """

    text: str
    shown: str
    models: tuple[str, ...]
    weights: Mapping[str, str]


@dataclass(frozen=True)
class Origin:
    """What is known of a model besides its recipe.

    Attributes:
        weights_sha256: the hash of the weights that were scored; None if it is not known.
        scores: the trial's number and scores; None if the model is no trial of a study.
        certificate: the result of `evomerge certify` for the same recipe; None if there is none.
        merges: the merges of a file of several; None where the recipe says all.
    """

    weights_sha256: str | None = None
    scores: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    merges: Merges | None = None


def write(
    folder: Path,
    bench: Workbench,
    built: Built,
    digest: str,
    origin: Origin,
    mergekit: str | None,
    tensors: Mapping[str, str],
) -> None:
    """Fills an empty folder with all that an export holds.

    Args:
        folder: the folder to fill.
        bench: the workbench that built the model.
        built: the live model and its recipe.
        digest: the hash of the model's weights.
        origin: what is known of the model besides its recipe.
        mergekit: the text of mergekit's configuration of the same merge; None where mergekit cannot express it.
        tensors: what was merged, kept and left out, in words, see `Survey.told`.
    """
    recipe = built.recipe
    _write_model(folder, bench, built)
    if origin.merges is None:  # else its parents are gone, and the recipe would name folders that are not there
        (folder / "recipe.yaml").write_text(files.recipe_to_yaml(recipe), encoding="utf-8")
    if mergekit is not None:
        (folder / "mergekit.yaml").write_text(mergekit, encoding="utf-8")
    about = {
        "recipe": recipe.sha256,
        "weights_sha256": digest,
        "scores": origin.scores,
        "certificate": origin.certificate,
        "tensors": dict(tensors),
    }
    if origin.merges:
        about["merges"] = dict(origin.merges.weights)
    if built.training_records:
        about["training"] = dict(built.training_records)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    sees = getattr(built.model.config, "vision_config", None) is not None
    told = (digest, origin.scores, origin.certificate, tensors)
    merges = (origin.merges.shown, origin.merges.models) if origin.merges else None
    card = model_card(recipe, *told, mergekit=mergekit is not None, sees=sees, merges=merges)
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
    _keep_architecture(bench.folder / "config.json", folder / "config.json")
    carried.add(folder, bench.merger.weights.carried_tensors(), _SHARD)
    if built.recipe.operators:
        _write_portable(folder / "config.json")
    for name, file in built.files.items():
        (folder / DELTAS).mkdir(exist_ok=True)
        shutil.copy(file, folder / DELTAS / f"{name}.safetensors")
    (folder / "generation_config.json").unlink(missing_ok=True)
    _copy_along(bench.folder, folder, (*_ALONG, *(_CODE if built.recipe.base.trusted else ())))
    if bench.added:
        bench.tokenizer.save_pretrained(folder)


def _keep_architecture(base: Path, path: Path) -> None:
    """Names the base's own classes in a config.json: the model may have been opened by another one."""
    own, config = (json.loads(one.read_text(encoding="utf-8")) for one in (base, path))
    if own.get("architectures"):
        config["architectures"] = own["architectures"]
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_along(folder: Path, out: Path, patterns: Sequence[str]) -> None:
    """Copies what goes along with the weights from the base's folder."""
    for file in folder.iterdir():
        wanted = any(file.match(pattern) for pattern in patterns) and not any(file.match(one) for one in _LEFT)
        if file.is_file() and wanted:
            shutil.copy(file, out / file.name)
        elif file.is_dir() and file.name in _FOLDERS:
            shutil.copytree(file, out / file.name)


def _write_portable(path: Path) -> None:
    """Rewrites a config.json so that it describes positions in the keys that older readers know, too."""
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(rope.portable(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
