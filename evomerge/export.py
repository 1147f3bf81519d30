"""Writes candidates as ordinary Hugging Face folders, and checks that what was written is what was scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from pydantic import ValidationError
from transformers import GenerationConfig

from evomerge import __version__, candidate, catalog, mergekit_yaml, records, rope, study, tensors
from evomerge import recipe as recipes
from evomerge.candidate import Progress, Setup, Survey, Workbench
from evomerge.certify import CERTIFICATE, p_text
from evomerge.errors import CandidateError, ConfigError, StudyError
from evomerge.loading import load_model, load_tokenizer
from evomerge.operators import Watch, unwatched
from evomerge.recipe import Recipe, SourceField, Strict, Vocabulary
from evomerge.records import Trial
from evomerge.study import Plan, recipe_of

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
        plan.folder / records.TABLES,
        out,
        progress,
        trial.weights_sha256,
        _scores(trial),
        found,
        deltas=plan.folder / records.DELTAS,
        left=study.left(plan, [trial]),
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
    candidate.check_operators(survey.base, survey.experts, steps)
    return build(recipe, survey, out, progress, deltas=path.parent / records.DELTAS)


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


class _Models(Strict):
    base: SourceField
    experts: dict[str, SourceField]
    vocabulary: Vocabulary | None = None


def read_recipe(path: Path, progress: Progress) -> tuple[Recipe, Survey]:
    """A recipe file, or mergekit's, with its checkpoints opened; `layers` and `dtype` may be left to the base.

    Raises:
        ConfigError, CheckpointError: as `export_recipe`.
    """
    data = catalog.read_yaml(path)
    if mergekit_yaml.is_one(data):
        return _read_mergekit(path, data, progress)
    try:
        models = _Models.model_validate({key: data[key] for key in _Models.model_fields if key in data})
    except ValidationError as error:
        raise ConfigError(str(path), recipes.faults_of(error)) from error
    folder = path.resolve().parent
    experts = {name: recipes.relocate(source, folder) for name, source in models.experts.items()}
    survey = candidate.survey(
        recipes.relocate(models.base, folder),
        experts,
        str(data.get("dtype", "auto")),
        progress,
        models.vocabulary,
    )
    recipe = recipes.read(path, layers=survey.layers, dtype=survey.dtype)
    if recipe.layers != survey.layers:
        raise ConfigError(str(path), [f"layers: is {recipe.layers}, but the base has {survey.layers}"])
    if faults := recipes.pattern_faults(recipe, survey.names):
        raise ConfigError(str(path), faults)
    return recipe.model_copy(update={"base": survey.base, "experts": dict(sorted(survey.experts.items()))}), survey


def _read_mergekit(path: Path, data: dict[str, Any], progress: Progress) -> tuple[Recipe, Survey]:
    """A mergekit configuration as `read_recipe` gives it. Its paths are relative to the working directory."""
    config = mergekit_yaml.read(str(path), data)
    base = recipes.relocate(config.base, Path.cwd())
    experts = {name: recipes.relocate(source, Path.cwd()) for name, source in config.experts.items()}
    survey = candidate.survey(base, experts, config.dtype or "auto", progress, config.vocabulary)
    recipe = config.recipe(survey.names, survey.dtype)
    return recipe.model_copy(update={"base": survey.base, "experts": dict(sorted(survey.experts.items()))}), survey


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
    left: Mapping[str, str] | None = None,
    watch: Watch = unwatched,
) -> Path:
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudyError(f"{out} exists already; give another folder, or remove it first")
    aside = out.parent / f".{out.name}.writing"
    shutil.rmtree(aside, ignore_errors=True)
    progress("merging")
    setup = Setup(
        base=survey.base,
        experts=survey.experts,
        dtype=recipe.dtype,
        cache=str(cache),
        threads=max(1, torch.get_num_threads()),
        vocabulary=recipe.vocabulary,
        deltas=None if deltas is None else str(deltas),
        left=left or {},
    )
    candidate.open_inputs(setup, progress, whole=True)
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
    with records.saving(out):
        aside.mkdir(parents=True)
        # The base's own generation config is copied below; transformers refuses to save some that it loads.
        model.generation_config = GenerationConfig()
        model.save_pretrained(aside, max_shard_size=_SHARD)
        if recipe.operators:
            _write_portable(aside / "config.json")
        for name, file in built.files.items():
            (aside / records.DELTAS).mkdir(exist_ok=True)
            shutil.copy(file, aside / records.DELTAS / f"{name}.safetensors")
        _copy(bench.folder, aside, "generation_config.json", *(() if bench.added else _TOKENIZER))
        if bench.added:
            bench.tokenizer.save_pretrained(aside)
        (aside / "recipe.yaml").write_text(recipes.to_yaml(recipe), encoding="utf-8")
        # mergekit reads the files' own names, and knows an adapter by its base.
        mergekit = mergekit_yaml.write(recipe, survey.names) if survey.plain else None
        if mergekit is not None:
            (aside / "mergekit.yaml").write_text(mergekit, encoding="utf-8")
        origin = {"recipe": recipe.sha256, "weights_sha256": digest, "scores": scores, "certificate": certificate}
        origin |= {"training": dict(built.left)} if built.left else {}
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
    with records.saving(out):
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
    return tensors.sha256({name: parameter.data for name, parameter in model.named_parameters()})


def _scores(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.number, "fitness": trial.value, "tasks": trial.tasks, "climbed": trial.climbed}


def model_card(
    recipe: Recipe,
    digest: str,
    scores: dict[str, Any] | None,
    certificate: dict[str, Any] | None,
    *,
    mergekit: bool,
) -> ModelCard:
    """The folder's README.md: what it is, how it was made, what it scores.

    Args:
        mergekit: whether the folder has a mergekit.yaml.
    """
    models = [recipe.base, *recipe.experts.values()]
    hub = [source.model for source in models if not Path(source.model).is_absolute()]
    data = ModelCardData(
        library_name="transformers",
        tags=["merge", "evomerge"],
        pipeline_tag="text-generation",
        base_model=hub or None,
    )
    experts = "\n".join(f"- **{name}**: `{_shown(source.model)}`" for name, source in recipe.experts.items())
    parts = [
        f"---\n{data.to_yaml()}\n---",
        "# A merged model",
        f"Made by evomerge {__version__}: method `{recipe.method}`, dtype "
        f"`{recipe.dtype}`, seed {recipe.seed}. {_what_followed(recipe)}",
        f"- **base**: `{_shown(recipe.base.model)}`\n{experts}",
    ]
    if scores is not None:
        parts += ["## Scores in the search", _score_table(scores), _SEARCH_NOTE]
    if certificate is not None:
        parts += ["## Scores on held-out documents", _certificate_table(certificate), certificate["verdict"]]
        parts += certificate.get("warnings", [])
    parts += [
        "## Recipe",
        f"Recipe `{recipe.sha256}`, weights `{digest}`. `evomerge merge recipe.yaml OUT` builds the same bits.",
        f"```yaml\n{_portable(recipe)}```",
    ]
    if mergekit:
        parts.append(
            "`mergekit.yaml` is the nearest configuration for mergekit. It draws other masks and breaks ties "
            "in magnitude otherwise, so its weights differ for the methods that drop elements."
        )
    return ModelCard("\n\n".join(parts) + "\n")


def _what_followed(recipe: Recipe) -> str:
    """What happened to the model after the merge, in a sentence."""
    names = [step.name for step in recipe.operators]
    trained = any(step.delta for step in recipe.operators)
    after = f"After the merge: {', '.join(f'`{name}`' for name in names)}. " if names else ""
    rest = f"It was trained: what that changed is in `{records.DELTAS}/`." if trained else "No training took place."
    return after + rest


_SEARCH_NOTE = "The search chose the model by these documents, so expect less on others."


def _shown(model: str) -> str:
    """A Hub id as it is; of a local path its last part alone, which tells nothing of the machine."""
    return Path(model).name if Path(model).is_absolute() else model


def _portable(recipe: Recipe) -> str:
    def shown(source: Any) -> Any:
        return source.model_copy(update={"model": _shown(source.model)})

    experts = {name: shown(source) for name, source in recipe.experts.items()}
    steps = tuple(step.model_copy(update={"options": _without_paths(step.options)}) for step in recipe.operators)
    changes = {"base": shown(recipe.base), "experts": experts, "operators": steps}
    return recipes.to_yaml(recipe.model_copy(update=changes))


def _without_paths(options: Any) -> Any:
    """Options with files by their names alone."""
    if isinstance(options, dict):
        return {k: _shown(v) if k == "path" else _without_paths(v) for k, v in options.items()}
    return [_without_paths(one) for one in options] if isinstance(options, list) else options


def _score_table(scores: dict[str, Any]) -> str:
    lines = ["| task | metric | climbed |", "|---|---|---|"]
    lines += [
        f"| {task} | {value:.4f} | {scores['climbed'][task]:.4f} |" for task, value in scores["tasks"].items()
    ]
    return "\n".join(lines)


def _certificate_table(certificate: dict[str, Any]) -> str:
    tasks = list(certificate["models"][0]["tasks"])
    lines = [f"| model | {' | '.join(tasks)} | mean | winner minus this |", "|---" * (len(tasks) + 3) + "|"]
    for model in certificate["models"]:
        against = model["winner_minus_this"]
        shown = f"{against['gain']:+.3f} (p {p_text(against['p'])})" if against else ""
        cells = " | ".join(f"{model['tasks'][task]:.3f}" for task in tasks)
        lines.append(f"| {model['name']} | {cells} | {model['mean']:.3f} | {shown} |")
    return "\n".join(lines)
