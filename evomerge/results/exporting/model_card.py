"""The model card of an export: what was merged, what it scores, and what was tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from evomerge import __version__
from evomerge.recipes import files
from evomerge.recipes.recipe import Recipe
from evomerge.results.paired_test import p_text
from evomerge.studies.folder import DELTAS


def model_card(
    recipe: Recipe,
    digest: str,
    scores: dict[str, Any] | None,
    certificate: dict[str, Any] | None,
    tensors: Mapping[str, str],
    *,
    mergekit: bool,
    sees: bool = False,
    merges: tuple[str, Sequence[str]] | None = None,
) -> ModelCard:
    """The README.md of an exported folder: what the model is, how it was made, and what it scores.

    Args:
        digest: the hash of the model's weights.
        scores: the trial's number and scores, see `contents.Origin`.
        certificate: the result of `evomerge certify`.
        tensors: what was merged, kept and left out, in words.
        mergekit: whether the folder has a mergekit.yaml.
        sees: whether the model takes images.
        merges: the text of the file of several merges that the model is the last of, and the models in it.
    """
    models = merges[1] if merges else [one.model for one in (recipe.base, *recipe.experts.values())]
    hub = [model for model in models if not Path(model).is_absolute()]
    data = ModelCardData(
        library_name="transformers",
        tags=["merge", "evomerge"],
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        base_model=hub or None,
    )
    experts = "\n".join(f"- **{name}**: `{_shown(source.model)}`" for name, source in recipe.experts.items())
    parts = [
        f"---\n{data.to_yaml()}\n---",
        "# A merged model",
        f"Made by evomerge {__version__}: method `{recipe.method}`, dtype "
        f"`{recipe.dtype}`, seed {recipe.seed}. {_what_followed(recipe)}",
        f"- **base**: `{_shown(recipe.base.model)}`\n{experts}",
        "\n".join(f"- {key.replace('_', ' ')}: {words}" for key, words in tensors.items()),
    ]
    if scores is not None:
        parts += ["## Scores in the search", _score_table(scores), _SEARCH_NOTE]
    if certificate is not None:
        parts += ["## Scores on held-out documents", _certificate_table(certificate), certificate["verdict"]]
        parts += certificate.get("warnings", [])
    parts += _merges(merges[0], digest) if merges else _recipe(recipe, digest, mergekit=mergekit)
    return ModelCard("\n\n".join(parts) + "\n")


def _recipe(recipe: Recipe, digest: str, *, mergekit: bool) -> list[str]:
    """The recipe, and how to build the model again."""
    parts = [
        "## Recipe",
        f"Recipe `{recipe.sha256}`, weights `{digest}`. `evomerge merge recipe.yaml OUT` builds the same bits.",
        f"```yaml\n{_portable(recipe)}```",
    ]
    if mergekit:
        parts.append(
            "`mergekit.yaml` is the nearest configuration for mergekit. It draws other masks and breaks ties "
            "in magnitude otherwise, so its weights differ for the methods that drop elements."
        )
    return parts


def _merges(text: str, digest: str) -> list[str]:
    """The merges that led to the model, and how to build it again."""
    return [
        "## Merges",
        f"The last of several merges; the results before it were not kept. Weights `{digest}`. `evomerge merge "
        "mergekit.yaml OUT` makes them all again, to the same bits.",
        f"```yaml\n{text}```",
    ]


def _what_followed(recipe: Recipe) -> str:
    """A sentence on the operators and the training after the merge."""
    names = [step.name for step in recipe.operators]
    trained = any(step.delta for step in recipe.operators)
    after = f"After the merge: {', '.join(f'`{name}`' for name in names)}. " if names else ""
    rest = f"It was trained: what that changed is in `{DELTAS}/`." if trained else "No training took place."
    return after + rest


_SEARCH_NOTE = "The search chose the model by these documents, so expect less on others."


def _shown(model: str) -> str:
    """A Hub id as it is; the last part of a local path, which tells nothing about the machine."""
    return Path(model).name if Path(model).is_absolute() else model


def _portable(recipe: Recipe) -> str:
    """The recipe file without the paths of this machine."""

    def shown(source: Any) -> Any:
        return source.model_copy(update={"model": _shown(source.model)})

    experts = {name: shown(source) for name, source in recipe.experts.items()}
    steps = tuple(step.model_copy(update={"options": _without_paths(step.options)}) for step in recipe.operators)
    changes = {"base": shown(recipe.base), "experts": experts, "operators": steps}
    return files.recipe_to_yaml(recipe.model_copy(update=changes))


def _without_paths(options: Any) -> Any:
    """An operator's options, in which each file has its name alone."""
    if isinstance(options, dict):
        return {k: _shown(v) if k == "path" else _without_paths(v) for k, v in options.items()}
    return [_without_paths(one) for one in options] if isinstance(options, list) else options


def _score_table(scores: dict[str, Any]) -> str:
    """A Markdown table of a trial's scores."""
    lines = ["| task | metric | climbed |", "|---|---|---|"]
    lines += [
        f"| {task} | {value:.4f} | {scores['climbed'][task]:.4f} |" for task, value in scores["tasks"].items()
    ]
    return "\n".join(lines)


def _certificate_table(certificate: dict[str, Any]) -> str:
    """A Markdown table of the models on the hold-out documents."""
    tasks = list(certificate["models"][0]["tasks"])
    lines = [f"| model | {' | '.join(tasks)} | mean | winner minus this |", "|---" * (len(tasks) + 3) + "|"]
    for model in certificate["models"]:
        against = model["winner_minus_this"]
        shown = f"{against['gain']:+.3f} (p {p_text(against['p'])})" if against else ""
        cells = " | ".join(f"{model['tasks'][task]:.3f}" for task in tasks)
        lines.append(f"| {model['name']} | {cells} | {model['mean']:.3f} | {shown} |")
    return "\n".join(lines)
