"""Writes candidates as ordinary Hugging Face folders, and checks that what was written is what was scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from evomerge.errors import CandidateError, StudyError
from evomerge.files import hashing, writing
from evomerge.models import rope
from evomerge.models.loading import load_model, load_tokenizer
from evomerge.models.survey import Progress, Survey
from evomerge.operators import Watch, unwatched
from evomerge.recipes import files, mergekit_yaml
from evomerge.recipes.recipe import Recipe
from evomerge.results.exporting.model_card import model_card
from evomerge.results.exporting.recipe_files import read_recipe
from evomerge.studies.candidates import operating
from evomerge.studies.candidates.setup import Setup, open_inputs
from evomerge.studies.candidates.workbench import Workbench
from evomerge.studies.folder import CERTIFICATE, DELTAS, TABLES
from evomerge.studies.plan import Plan, recipe_of, trained_files
from evomerge.studies.trials import Trial

_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)


_SHARD = "4GB"


ABOUT = "evomerge.json"  # in the folder: where the model comes from


def export_trial(plan: Plan, trial: Trial, out: Path, progress: Progress) -> Path:
    """Builds a trial's model again, in a folder that transformers loads.

    Raises:
        StudyError: the trial failed, or `out` exists, or the model is not the one that was scored.
        CheckpointError: a checkpoint has changed since the search.
    """
    if trial.value is None:
        raise StudyError(f"trial {trial.number} failed ({trial.reason}); choose another one")
    recipe = recipe_of(plan, trial)
    found = _certificate(plan.folder / CERTIFICATE, recipe)
    return _write(
        recipe,
        plan.survey,
        plan.folder / TABLES,
        out,
        progress,
        trial.weights_sha256,
        _scores(trial),
        found,
        deltas=plan.folder / DELTAS,
        trained=trained_files(plan, [trial]),
    )


def _certificate(path: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The study's certificate, if there is a sound one for this recipe."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("recipe") == recipe.sha256 else None


def export_recipe(path: Path, out: Path, progress: Progress) -> Path:
    """Builds the model of a recipe file, without a search.

    Raises:
        ConfigError: the file has faults.
        CheckpointError: a checkpoint is missing, does not fit, or is not the one the recipe names.
    """
    recipe, survey = read_recipe(path, progress)
    # What has trained needs neither texts nor teachers again.
    steps = [step for step in recipe.operators if step.delta is None]
    operating.check_operators(survey.base, survey.experts, steps)
    return build(recipe, survey, out, progress, deltas=path.parent / DELTAS)


def build(
    recipe: Recipe,
    survey: Survey,
    out: Path,
    progress: Progress,
    *,
    deltas: Path | None = None,
    watch: Watch = unwatched,
) -> Path:
    """Builds the model of a recipe.

    Args:
        survey: of its checkpoints.
        deltas: folder of what its training operators left, where they have trained already.
        watch: is told of training, see `operators.Context`.

    Raises:
        CandidateError: it cannot be built. StudyError: `out` exists, or cannot be written.
    """
    cache = out.parent / f".{out.name}.tables"
    try:
        return _write(recipe, survey, cache, out, progress, None, None, None, deltas=deltas, watch=watch)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def about(folder: Path) -> dict[str, Any]:
    """What an exported folder says of where its model comes from."""
    found: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return found


def _write(
    recipe: Recipe,
    survey: Survey,
    cache: Path,
    out: Path,
    progress: Progress,
    scored: str | None,
    scores: dict[str, Any] | None,
    certificate: dict[str, Any] | None,
    *,
    deltas: Path | None = None,
    trained: Mapping[str, str] | None = None,
    watch: Watch = unwatched,
) -> Path:
    out = out.resolve()
    writing.refuse_existing(out)
    aside = writing.folder_aside(out)
    progress("merging")
    setup = Setup(
        base=survey.base,
        experts=survey.experts,
        dtype=recipe.dtype,
        cache=str(cache),
        threads=max(1, torch.get_num_threads()),
        vocabulary=recipe.vocabulary,
        deltas=None if deltas is None else str(deltas),
        trained=trained or {},
    )
    open_inputs(setup, progress, whole=True)
    bench = Workbench(setup)
    built = bench.build(recipe, watch)
    model, recipe = built.model, built.recipe
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise CandidateError(
                f"the merged {name} is not finite: the coefficients are too large, or a parent is not"
            )
    digest = weights_sha256(model)
    if scored not in (None, digest):
        raise StudyError(
            f"the model built now ({digest[:12]}) is not the one that was scored ({scored[:12]}); "
            "the library or torch has changed since: export with the versions of the search"
        )
    progress("writing")
    with writing.saving(out):
        aside.mkdir(parents=True)
        # The base's own generation config is copied below; transformers refuses to save some that it loads.
        model.generation_config = GenerationConfig()
        model.save_pretrained(aside, max_shard_size=_SHARD)
        if recipe.operators:
            _write_portable(aside / "config.json")
        for name, file in built.files.items():
            (aside / DELTAS).mkdir(exist_ok=True)
            shutil.copy(file, aside / DELTAS / f"{name}.safetensors")
        _copy(bench.folder, aside, "generation_config.json", *(() if bench.added else _TOKENIZER))
        if bench.added:
            bench.tokenizer.save_pretrained(aside)
        (aside / "recipe.yaml").write_text(files.recipe_to_yaml(recipe), encoding="utf-8")
        # mergekit reads the files' own names, and knows an adapter by its base.
        mergekit = mergekit_yaml.write(recipe, survey.names) if survey.plain else None
        if mergekit is not None:
            (aside / "mergekit.yaml").write_text(mergekit, encoding="utf-8")
        origin = {"recipe": recipe.sha256, "weights_sha256": digest, "scores": scores, "certificate": certificate}
        origin |= {"training": dict(built.training_records)} if built.training_records else {}
        (aside / ABOUT).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
        card = model_card(recipe, digest, scores, certificate, mergekit=mergekit is not None)
        card.save(aside / "README.md")
    progress("loading it again to compare")
    loaded = load_model(aside, recipe.dtype, "cpu")
    reloaded = weights_sha256(loaded)
    if reloaded != digest:
        raise StudyError(
            f"{aside}: the folder loads as {reloaded[:12]} and not as {digest[:12]}; please report this"
        )
    if recipe.operators and not torch.equal(_some_logits(loaded), _some_logits(model)):
        raise StudyError(f"{aside}: the folder's config does not load as it was scored; please report this")
    if bench.added and load_tokenizer(aside).get_vocab() != bench.tokenizer.get_vocab():
        raise StudyError(f"{aside}: the tokenizer does not load as it was written; please report this")
    with writing.saving(out):
        if out.exists():
            out.rmdir()
        aside.replace(out)
    return out


def _copy(folder: Path, out: Path, *patterns: str) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copy(file, out / file.name)


def _write_portable(path: Path) -> None:
    """Says what the config says of positions also in the keys that older readers know."""
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(rope.portable(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _some_logits(model: Any) -> torch.Tensor:
    """The logits of a few tokens: equal where weights and config are."""
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits.cpu()
    return logits


def weights_sha256(model: Any) -> str:
    """The hash of a model's weights, see `tensors.sha256`; tied parameters count once."""
    return hashing.sha256({name: parameter.data for name, parameter in model.named_parameters()})


def _scores(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.number, "fitness": trial.value, "tasks": trial.tasks, "climbed": trial.climbed}
