"""The end of a search: does its fitness still rise, and has it fitted its documents?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evomerge.results.generations import generations_of, values_of
from evomerge.studies.trials import Trial

_LATE = 3  # the end of a search is its last third
_LEAST_RISE = 0.15  # a rise in the last third by less than this share of the whole rise is no cause to go on
_RECENT = 5  # how many of the last generations stand for the end of a search


def still_rising(trials: Sequence[Trial]) -> list[str]:
    """A warning if the fitness still rises in the last third of the search; [] if it does not."""
    searched = [trial for group in generations_of(trials) for trial in group]
    rising = _means_rise(trials) if all(trial.all_documents for trial in searched) else _incumbents_rise(trials)
    if not rising:
        return []
    return [
        f"the fitness was still rising at the end of {len(trials)} candidates; go on with `evomerge resume STUDY "
        f"--candidates {2 * len(trials)}`"
    ]


def _means_rise(trials: Sequence[Trial]) -> bool:
    """Whether the means of the last third of the generations rise, significantly (t-test, p < 0.01) and enough to
    matter."""
    means = np.array([values_of(group).mean() for group in generations_of(trials)])
    late = means[-(len(means) // _LATE) :]
    if len(means) < 6 * _LATE or np.ptp(late) == 0.0:
        return False
    fit = stats.linregress(np.arange(len(late)), late, alternative="greater")
    rise = fit.slope * (len(late) - 1)
    return bool(fit.pvalue < 0.01 and rise > _LEAST_RISE * (means.max() - means.min()))


def _incumbents_rise(trials: Sequence[Trial]) -> bool:
    """Whether the last incumbent is better than the one two thirds through the search, by three standard errors
    and enough to matter.

    All incumbents are scored on the same documents, those kept apart, so the noise is that of a paired difference.
    """
    chosen = [t for t in trials if t.role == "select" and t.incumbent and t.value is not None]
    noise = _noise(trials)
    if not chosen or noise is None:
        return False
    end = max(trial.generation for trial in trials) + 1
    early = [trial for trial in chosen if _LATE * trial.generation < (_LATE - 1) * end]
    if not early:
        return False
    first, before, last = values_of([chosen[0], early[-1], chosen[-1]]).tolist()
    enough = max(_LEAST_RISE * (last - first), 3 * noise.between / math.sqrt(chosen[-1].documents))
    return bool(last - before > enough)


@dataclass(frozen=True)
class _Noise:
    """How much the choice of documents moves values, estimated from the blocks of the last generations.

    Attributes:
        single: the standard deviation of a candidate's score over single documents.
        between: the standard deviation, over single documents, of the difference between two candidates of
            a generation.
        documents: the number of documents that these generations saw, counted anew in each generation.
        most: the greatest number of documents that one of them saw.
        free: the degrees of freedom of `single`.
    """

    single: float
    between: float
    documents: float
    most: float
    free: int


def _noise(trials: Sequence[Trial]) -> _Noise | None:
    """The noise of the last generations; None where too few of them were scored in blocks."""
    squares = interactions = documents = most = 0.0
    free = crossed = 0
    for group in _recent(trials):
        shared = min(len(trial.blocks) for trial in group)  # the blocks that all of them have
        longest = max(group, key=lambda trial: len(trial.blocks))
        if shared < 2 or len(group) < 2 or not longest.documents:
            continue
        block = longest.documents / len(longest.blocks)
        rows = np.array([trial.blocks[:shared] for trial in group])
        apart = rows - rows.mean(axis=1, keepdims=True)
        squares += block * float(np.square(apart).sum()) / len(group)
        interactions += block * float(np.square(apart - apart.mean(axis=0)).sum())
        free += shared - 1
        crossed += (shared - 1) * (len(group) - 1)
        documents += longest.documents
        most = max(most, longest.documents)
    if free < _RECENT:
        return None
    return _Noise(math.sqrt(squares / free), math.sqrt(2 * interactions / crossed), documents, most, free)


def _recent(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The last generations that were scored in blocks."""
    return [group for group in generations_of(trials) if any(trial.blocks for trial in group)][-_RECENT:]


def overfitted(trials: Sequence[Trial], fresh: bool) -> list[str]:
    """A warning if the last generations score far higher on their documents than the incumbent on those kept apart.

    The means of whole generations are compared, which no choice among candidates has favoured, by a t-test at
    p < 0.001. Documents that come again count once.

    Args:
        fresh: whether each generation had documents of its own.

    Returns:
        The warning, or [].
    """
    chosen = [t for t in trials if t.role == "select" and t.incumbent and t.value is not None and t.documents]
    noise = _noise(trials)
    if not chosen or noise is None:
        return []
    seen = noise.documents if fresh else noise.most
    if finals := [trial.documents for trial in trials if trial.role == "final" and trial.documents]:
        seen = min(seen, finals[-1])  # the documents that are not kept apart
    incumbent = chosen[-1].value or 0.0
    recent = float(np.mean([values_of(group).mean() for group in _recent(trials)]))
    error = noise.single * math.sqrt(1 / seen + 1 / chosen[-1].documents)
    if recent - incumbent <= max(error * float(stats.t.isf(1e-3, noise.free)), 1e-12):
        return []
    return [
        f"the last generations score {recent:.4f} on the documents of the search, but the best trial "
        f"{incumbent:.4f} on those kept apart: the search has fitted its documents; give it more of them"
    ]
