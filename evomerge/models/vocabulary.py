"""Matches rows of embeddings and heads by token, where models of different vocabularies are merged.

- `base`: the result has the base's vocabulary. An expert's row for a token that it lacks is the base's row.
- `union`: the base's tokens keep their ids, and tokens that only experts have follow: in the order of the experts'
  names, then of their ids. Their ids start after the base tokenizer's last one, so they take over rows that only
  pad the base's matrix, and lengthen it when those run out. It is never shortened.

A row that the base has stands for whoever lacks its token. A row that the base lacks is the mean of the experts'
rows that have it, for the base and for the experts that lack it; zero if none has it. So who lacks a token has a
zero task vector for it. Rows without a token are the base's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from evomerge.models.source import Vocabulary


@dataclass(frozen=True)
class Holding:
    """What one model has.

    Attributes:
        tokens: token -> its id, in the model's tokenizer.
        rows: the number of rows of its embedding.
    """

    tokens: Mapping[str, int]
    rows: int


@dataclass(frozen=True)
class Alignment:
    """Where each model's rows go.

    Attributes:
        rows: the number of rows of the result.
        sources: model ("" is the base) -> int64 (rows,): for each row of the result the number of the model's own
            row that goes there, or -1. A model whose rows stay as they are is missing.
        added: the tokens that the base's tokenizer needs besides its own -> their ids.
    """

    rows: int
    sources: dict[str, torch.Tensor]
    added: dict[str, int]


def align(policy: Vocabulary, base: Holding, experts: Mapping[str, Holding]) -> Alignment:
    """Matches the rows of the base and of the experts by token."""
    ids = dict(base.tokens)
    added: dict[str, int] = {}
    if policy == "union":
        free = 1 + max(ids.values(), default=-1)
        for name in sorted(experts):
            fresh = [token for token, row in _by_row(experts[name]) if token not in ids and token not in added]
            added |= {token: free + len(added) + place for place, token in enumerate(fresh)}
    rows = max([base.rows, *(1 + row for row in added.values())])
    ids |= added
    sources = {}
    for name, holding in experts.items():
        same = dict(holding.tokens) == dict(base.tokens) and holding.rows == rows and not added
        if not same:
            sources[name] = _source(ids, rows, holding)
    own = torch.arange(base.rows)
    source = torch.full((rows,), -1)
    source[: base.rows] = own
    source[list(added.values())] = -1
    sources[""] = source
    return Alignment(
        rows,
        {
            name: source
            for name, source in sources.items()
            if not torch.equal(source, torch.arange(experts[name].rows if name else base.rows))
        },
        added,
    )


def _by_row(holding: Holding) -> list[tuple[str, int]]:
    """The tokens that have a row, in the order of their ids."""
    return sorted(((t, row) for t, row in holding.tokens.items() if row < holding.rows), key=lambda pair: pair[1])


def _source(ids: Mapping[str, int], rows: int, holding: Holding) -> torch.Tensor:
    """int64 (rows,): for each row of the result the number of a model's own row that goes there, or -1."""
    source = torch.full((rows,), -1)
    for token, row in _by_row(holding):
        if token in ids and ids[token] < rows:
            source[ids[token]] = row
    return source


def realign(
    name: str, alignment: Alignment, base: torch.Tensor, experts: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """One model's rows in the result's order.

    Args:
        name: the model's name, "" for the base.
        base, experts: the same tensor of all models before rows are matched: (rows, ...) each.

    Returns:
        (alignment.rows, ...), in the wider of the base's dtype and the model's own.
    """
    common = _common(alignment, base, experts)
    if not name:
        return common
    own, source = experts[name], alignment.sources[name]
    common = common.to(torch.promote_types(base.dtype, own.dtype))
    has = source >= 0
    common[has] = own[source[has]].to(common.dtype)
    return common


def _common(alignment: Alignment, base: torch.Tensor, experts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The base's rows in the result's order, and where the base has none the mean of the experts' rows.

    Sums run in the order of the experts' names, so that the bits do not depend on the order in a file.
    """
    own = alignment.sources.get("", torch.arange(base.shape[0]))
    out = torch.zeros((alignment.rows, *base.shape[1:]), dtype=base.dtype)
    has = own >= 0
    out[has] = base[own[has]]
    lacking = torch.nonzero(~has).flatten()
    if not len(lacking):
        return out
    total = torch.zeros((len(lacking), *base.shape[1:]))
    count = torch.zeros(len(lacking))
    for name in sorted(experts):
        tensor = experts[name]
        source = alignment.sources.get(name, torch.arange(tensor.shape[0]))[lacking]
        there = source >= 0
        total[there] += tensor[source[there]].float()
        count[there] += 1.0
    count = count.clamp_(min=1.0).view(-1, *[1] * (base.ndim - 1))
    out[lacking] = (total / count).to(base.dtype)
    return out
