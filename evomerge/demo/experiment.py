"""Writes the demo's experiment file: the first one a person reads, so its comments explain every line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.files import writing
from evomerge.scoring.documents.skills import SKILLS

_TEXT = """\
# An evomerge experiment: which models to merge, what may vary, what counts as good, and how long to look.
# Paths are relative to this file. Run it with:      evomerge run experiment.yaml
# Take up an interrupted search with:               evomerge resume {study}

# The model that every expert was fine-tuned from. A folder, or a Hugging Face id.
base: models/base

# The fine-tuned models, each under a short name.
experts: {{{experts}}}

# The search space: the merge method, and the numbers (genes) that the search may turn.
# Instead of this mapping, write the name of a shipped space (`evomerge ls`) or the path of a file of your own.
space:
  method: task_arithmetic         # merged = base + lambda * sum over experts of weight * (expert - base)
  layers: {{groups: 2}}             # the depth in two halves, each with genes of its own
  modules: [attention, mlp]       # these have genes of their own; all other tensors share one more set
  genes:
    # 2 halves x 3 kinds of module x {n_experts} experts = {n_genes} genes, each between low and high.
    weight: {{low: 0.0, high: 1.5, init: 0.5, per: [layer, module, expert]}}
  fixed: {{lambda: 1.0, normalize: false}}

# What a candidate is judged by: questions on which the search climbs, and others that it never sees.
fitness: tiny_skills

# How candidates are proposed: CMA-ES, twelve in a generation. All of a generation answer the same few questions.
sampler: {{name: cma, population: 12}}

# When to stop: after so many candidates, known good points and looks at the best so far included.
budget: {{candidates: {candidates}}}

# The same seed gives the same search, however many workers run it and however often it is interrupted.
seed: {seed}

# Where candidates are built and scored: `ray` uses all cores and GPUs, `inline` this process alone.
workers: {{backend: ray, count: auto, gpus: auto, threads: auto}}

# The folder that keeps the search: log, scores, and all that resuming needs.
study: {study}
"""


def write_experiment(
    folder: Path,
    candidates: int,
    *,
    seed: int = 0,
    experts: Sequence[str] = tuple(SKILLS),
    study: str = "studies/quickstart",
) -> Path:
    """Writes `folder/experiment.yaml` for the family that `train_family(folder)` made, and returns its path.

    Args:
        folder: the demo's folder, in which `models/` lies.
        candidates: how many merges the search may try.
        seed: the seed of the search.
        experts: the skills whose experts are merged.
        study: the study's folder, relative to `folder`.
    """
    text = _TEXT.format(
        experts=", ".join(f"{name}: models/expert-{name}" for name in experts),
        n_experts=len(experts),
        n_genes=2 * 3 * len(experts),
        candidates=candidates,
        seed=seed,
        study=study,
    )
    path = folder / "experiment.yaml"
    writing.write_text(path, text)
    return path
