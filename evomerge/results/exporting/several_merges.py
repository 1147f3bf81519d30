"""Files of several mergekit merges, of which some merge what others make: mergekit-multi's.

The results that others merge lie in a temporary folder beside the output, and are removed at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.files import writing, yaml
from evomerge.models import Progress
from evomerge.models.source import Source, relocate
from evomerge.recipes.mergekit_yaml import schema, stages
from evomerge.recipes.mergekit_yaml.stages import Stage
from evomerge.recipes.mergekit_yaml.writing import reference
from evomerge.results.exporting.contents import Merges, Origin, read_about
from evomerge.results.exporting.folder import build, export_recipe
from evomerge.results.exporting.recipe_files import read_mergekit, silent


def merge_file(path: Path, out: Path, progress: Progress, note: Progress = silent) -> Path:
    """Builds what a recipe file or one or several mergekit configurations in a file say, and returns the folder.

    A file of several ends in one model, in `out`; or in several that none of the others merges, each in a folder of
    its name in `out`.

    Args:
        note: is told what stands in the file and changes nothing.

    Raises:
        EvomergeError: the file or a model does not do, or `out` exists or cannot be written.
    """
    documents = yaml.read_documents(path)
    if len(documents) == 1:
        return export_recipe(path, out, progress, note)
    out = out.resolve()
    writing.refuse_existing(out)
    made = stages.stages(str(path), documents)
    last = stages.results(made)
    work = out.parent / f".{out.name}.merges"
    shutil.rmtree(work, ignore_errors=True)
    built = {stage.name: work / "merged" / stage.folder for stage in made}
    built |= {stage.name: work / "results" / stage.folder for stage in last}
    if len(last) == 1:
        built[last[0].name] = out
    try:
        for number, stage in enumerate(made, 1):
            progress(f"merge {number} of {len(made)}{f', {stage.name}' if stage.name else ''}")
            _build(stage, made, built, progress, note)
        if len(last) > 1:
            with writing.saving(out):
                if out.exists():
                    out.rmdir()
                (work / "results").replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _build(
    stage: Stage, made: Sequence[Stage], built: Mapping[str, Path], progress: Progress, note: Progress
) -> None:
    """Builds one of several merges.

    Args:
        built: the name of each merge -> its folder.
    """

    def located(value: Any) -> Any:
        name = stages.name_of(value)
        return {"model": {"path": str(built[name])}} if name in stage.needs else value

    recipe, survey = read_mergekit(stage.where, stages.with_models(stage.data, located), progress, note)
    origin = Origin(merges=_merges(stage, made, built)) if stage.needs else Origin()
    build(recipe, survey, built[stage.name], progress, origin=origin)


def _merges(stage: Stage, made: Sequence[Stage], built: Mapping[str, Path]) -> Merges:
    """What is known of the merges that lead to one."""
    leading = stages.leading_to(stage, made)
    names = {one.name for one in leading if one.name}
    models: dict[str, None] = {}

    def source(value: Any) -> Source:
        """A model that is no result, where it lies."""
        around = value if isinstance(value, str) else {"model": value}
        return relocate(schema.model_of(around), Path.cwd())

    def absolute(value: Any) -> Any:
        if stages.name_of(value) in names:
            return value
        models[source(value).model] = None
        return reference(source(value))

    def shown(value: Any) -> Any:
        if stages.name_of(value) in names:
            return value
        path = Path(source(value).model)
        return path.name if path.is_absolute() else value

    texts = [
        yaml.write_documents(
            {**({"name": one.name} if one.name else {}), **stages.with_models(one.data, change)} for one in leading
        )
        for change in (absolute, shown)
    ]
    weights = {one.name: read_about(built[one.name])["weights_sha256"] for one in leading if one is not stage}
    return Merges(texts[0], texts[1], tuple(models), weights)
