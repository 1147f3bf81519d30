"""Whether a model's answers are cut off more or less often than those of others.

An answer that is cut off at its greatest length is mostly wrong, so a model may gain by shorter answers alone.
Where models differ in how many of their answers were cut off, by Fisher's exact test (1935), a warning says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from scipy import stats

from evomerge.scoring.reports import Report

NOTICEABLE = 0.01  # a difference in truncation by a smaller share of the answers is passed over

_LEVEL = 0.05  # the p-value below which a difference is beyond chance


def truncation_warnings(name: str, report: Report, others: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    """A warning for each task on which a model's answers were cut off more or less often than others'.

    Args:
        name, report: the model's name and report.
        others: name of a model -> task -> the number of its truncated answers, over the same documents.
    """
    warnings = []
    for task, result in report.tasks.items():
        ours = report.truncated[task]
        counts = {other: truncated[task] for other, truncated in others.items()}
        answers = max(len(result.documents), ours, *counts.values())  # a document may ask for several answers
        unlike = [
            f"{other} {theirs}" for other, theirs in counts.items() if truncation_differs(ours, theirs, answers)
        ]
        if unlike:
            warnings.append(
                f"{task}: truncation differs: of {answers} answers {name} had {ours} cut off, {', '.join(unlike)}; "
                "part of the difference may be answers that end in time: raise the task's max_gen_toks"
            )
    return tuple(warnings)


def truncation_differs(first: int, second: int, answers: int) -> bool:
    """Whether two models' counts of truncated answers, of `answers` each, differ noticeably and beyond chance.

    Fisher's exact test takes the answers as independent, although the documents are the same. That makes it slower
    to warn, never faster.

    Args:
        first, second: how many answers of each model were truncated.
        answers: how many answers each model gave.
    """
    if abs(first - second) < max(NOTICEABLE * answers, 1):
        return False
    table = [[first, answers - first], [second, answers - second]]
    return bool(stats.fisher_exact(table).pvalue < _LEVEL)
