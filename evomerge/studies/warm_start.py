"""Model stock's point: a warm start from the angles between the experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from evomerge.merging.model_stock import adds_up, task_vector_weights
from evomerge.merging.table_store import Statistics
from evomerge.models import Progress
from evomerge.models.tensor_names import Place
from evomerge.searching.spaces.decoding import LaidOut
from evomerge.searching.spaces.genes import Genome
from evomerge.searching.spaces.known_points import WantedWeight, nearest_weights, together
from evomerge.studies.candidates.setup import Setup, open_inputs


def model_stock(
    setup: Setup, laid: LaidOut, places: Mapping[str, Place], progress: Progress = lambda text: None
) -> Genome | None:
    """Model stock's step from the base towards the experts' average, as weights of task vectors.

    Jang et al. 2024, "Model stock", arXiv 2403.19522, eq. 7: a tensor of K experts goes t of the way to their
    average, t from the mean cosine between their task vectors; as a sum of task vectors that is t/K of each. A
    coordinate gets the mean of t/(K·λ) over the elements of the tensors that it reaches, t clipped to [0, 1].
    Tensors that no expert changes have no angle and are left out.

    The result depends on the checkpoints and the space alone. The table of the angles lies in the setup's cache
    beside the tables of the methods, and is made once.

    Args:
        setup: what workers are made from.
        laid: the search space, laid over the models.
        places: tensor that is merged -> where it sits.
        progress: is told when angles are to be measured.

    Returns:
        The genome; None where the space does not search weights of two experts or more by a method that adds up.

    Raises:
        CheckpointError: a tensor has values that are not finite.
        StudyError: the cache cannot be written.
    """
    if "weight" not in laid.space.numbers or len(laid.common.experts) < 2:
        return None
    for method in laid.space.methods:
        genome = together(laid, method)
        if genome is not None and adds_up(method, laid.decode(genome).options[method]):
            return nearest_weights(laid, genome, _wishes(setup, laid, genome, places, progress))
    return None


def _wishes(
    setup: Setup, laid: LaidOut, genome: Genome, places: Mapping[str, Place], progress: Progress
) -> list[WantedWeight]:
    """The weight that model stock gives each tensor, divided by the λ of a genome at that place."""
    base, experts = open_inputs(setup)
    recipe = laid.decode(genome)
    statistics = Statistics(
        base, experts, list(places), Path(setup.cache), lambda text: progress("measuring angles for a warm start")
    )
    wishes = []
    for name, weight in task_vector_weights(list(places), tuple(recipe.experts), statistics):
        factor = recipe.coefficients(places[name])["lambda"][0]
        if factor:
            wishes.append(WantedWeight(places[name], math.prod(base.shapes[name]), weight / factor))
    return wishes
