"""Log-likelihood requests made ready: steps to forward, and groups of steps whose scored positions pass the head
together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from evomerge.scoring.forward.pass_plan import PassPlan
from evomerge.scoring.forward.requests import LikelihoodRequest
from evomerge.scoring.forward.walk import Step, as_tensor


@dataclass
class Group:
    """Steps whose scored positions pass the head together; they are forwarded or skipped as a whole.

    Attributes:
        steps: their numbers.
        where: (g,) int64, the place of each scored token among the scored positions of all these steps.
        tokens: (g,) int64, the scored tokens.
        answers: (g,) int64, the number of each scored token among the answer tokens of all chosen requests.
        requests: the requests that have tokens here.
        complete: the requests of which no token comes in a later group.
    """

    steps: list[int]
    where: Tensor
    tokens: Tensor
    answers: np.ndarray
    requests: frozenset[int]
    complete: list[int]


@dataclass
class Prepared:
    """A choice of requests, ready to be forwarded.

    Attributes:
        chosen: the requests' numbers.
        places: for each step, (p,) int64: its scored positions, as indices into its b * l positions.
        starts: (n + 1,) int64, where the answer tokens of each request start among those of all.
    """

    chosen: tuple[int, ...]
    steps: list[Step]
    places: list[Tensor]
    groups: list[Group]
    starts: np.ndarray


@dataclass(frozen=True)
class _Scored:
    """The scored positions of one step.

    answers: (g,) int64, as in `Group`. places: (p,) int64, distinct. where: (g,) int64, indices into `places`.
    """

    answers: np.ndarray
    places: np.ndarray
    where: np.ndarray


def prepare(
    chosen: dict[int, LikelihoodRequest], plan: PassPlan, places: Sequence[np.ndarray], device: Any, *, at_once: int
) -> Prepared:
    """Makes requests ready.

    Args:
        chosen: number -> request, in the order of their answers.
        plan: forwards all their rows.
        places: for each request, the places of its row's last tokens, at least as many as its answer has.
        at_once: a group is full once it has so many scored positions.
    """
    lengths = [len(request.answer) for request in chosen.values()]
    where = np.concatenate([one[-length:] for one, length in zip(places, lengths, strict=True)])
    answers = np.argsort(where[:, 0], kind="stable")
    cuts = np.searchsorted(where[answers, 0], np.arange(1, len(plan.batches)))
    scored = []
    for batch, mine in zip(plan.batches, np.split(answers, cuts), strict=True):
        flat = where[mine, 1] * batch.ids.shape[1] + where[mine, 2]
        scored.append(_Scored(mine, *np.unique(flat, return_inverse=True)))
    return Prepared(
        tuple(chosen),
        [Step.of(batch, device) for batch in plan.batches],
        [as_tensor(one.places, device) for one in scored],
        _groups(chosen, scored, _members(scored, at_once), device),
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def _members(scored: Sequence[_Scored], at_once: int) -> list[list[int]]:
    """Numbers of consecutive steps, as many in each group as have enough scored positions together."""
    members: list[list[int]] = [[]]
    positions = 0
    for number, one in enumerate(scored):
        if positions >= at_once:
            members.append([])
            positions = 0
        members[-1].append(number)
        positions += len(one.places)
    return members


def _groups(
    chosen: dict[int, LikelihoodRequest], scored: Sequence[_Scored], members: Sequence[list[int]], device: Any
) -> list[Group]:
    """The groups of steps, in the order in which they are forwarded."""
    owner = np.repeat(np.array(list(chosen)), [len(request.answer) for request in chosen.values()])
    tokens = np.concatenate([np.array(request.answer, dtype=np.int64) for request in chosen.values()])
    groups: list[Group] = []
    later: set[int] = set()
    for numbers in reversed(members):
        mine = [scored[number] for number in numbers]
        answers = np.concatenate([one.answers for one in mine])
        offsets = np.cumsum([0, *(len(one.places) for one in mine)])
        where = np.concatenate([one.where + offset for one, offset in zip(mine, offsets, strict=False)])
        requests = frozenset(owner[answers].tolist())
        complete = sorted(requests - later)
        later |= requests
        groups.append(
            Group(
                numbers, as_tensor(where, device), as_tensor(tokens[answers], device), answers, requests, complete
            )
        )
    return groups[::-1]
