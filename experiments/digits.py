"""M2N2's benchmark: two small networks that know half of the digits each, to be merged into one that knows all.

Abrantes, Lange and Tang 2025, arXiv 2508.16204, on scikit-learn's `load_digits` in place of MNIST. Two networks
64-256-10 with ReLU, 19,210 parameters, from different random starts; one sees the digits 0 to 4, the other 5 to 9,
10 full-batch steps of Adam each, at a rate of 0.003. The first 1437 images are for training and search, the last
360 for testing.

A merge has 34 coefficients, 2 networks × 17 blocks: block k < 16 is the hidden units 16k to 16k + 15, each with the
weights that enter it, its bias and the weights that leave it; block 16 is the output's biases. With coefficient
c[n, k] of network n on block k,

    hidden = ReLU(Σ_n c[n, k] (W_n x + b_n)),   logits = Σ_n (c[n, k] V_n) hidden + Σ_n c[n, 16] d_n

so that the hidden layer needs no product with the images: W_n x + b_n of all images is kept. An image is a
document.

bench_search.py runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from evomerge.searching.documents import Fidelity
from evomerge.searching.maximize import maximize
from evomerge.searching.search import Line
from evomerge.searching.spaces.genes import Coordinate, Genome

TRAINING = 1437
BLOCKS = 17
EXPERTS = ("high", "low")
_HIDDEN, _WIDTH = 256, 16


@dataclass(frozen=True)
class Digits:
    """The images as the two networks see them.

    Attributes:
        inner: (2, images, 256): what enters each network's hidden units.
        outer: (2, 256, 10): the weights that leave them.
        bias: (2, 10): the output's.
        labels: (images,); the first `TRAINING` are for the search.
    """

    inner: np.ndarray
    outer: np.ndarray
    bias: np.ndarray
    labels: np.ndarray

    def logits(self, coefficients: np.ndarray, images: np.ndarray | slice) -> np.ndarray:
        """(images, 10): of the merge with coefficients (2, 17)."""
        units = np.repeat(coefficients[:, :-1], _WIDTH, axis=1).astype(np.float32)  # (2, 256)
        hidden = np.maximum(units[0] * self.inner[0, images] + units[1] * self.inner[1, images], 0.0)
        return hidden @ np.einsum("nh,nho->ho", units, self.outer) + coefficients[:, -1] @ self.bias

    def accuracy(self, coefficients: np.ndarray, images: np.ndarray | slice) -> np.ndarray:
        """(images,): 1 for each image that is classified rightly."""
        return (self.logits(coefficients, images).argmax(axis=1) == self.labels[images]).astype(float)

    def log_likelihood(self, coefficients: np.ndarray, images: np.ndarray | slice) -> np.ndarray:
        """(images,): the log-probability of each image's digit, in nats."""
        logits = self.logits(coefficients, images)
        logits = logits - logits.max(axis=1, keepdims=True)
        right = np.take_along_axis(logits, self.labels[images][:, None], axis=1)[:, 0]
        return right - np.log(np.exp(logits).sum(axis=1))


TRAIN = slice(0, TRAINING)
TEST = slice(TRAINING, None)


def prepare(seed: int = 0) -> Digits:
    """Trains the two networks, `low` on 0 to 4 and `high` on 5 to 9; in the order of `EXPERTS`."""
    data = load_digits()
    images = torch.tensor(data.data / 16.0, dtype=torch.float32)
    labels = torch.tensor(data.target)
    networks = {}
    for part, name in enumerate(("low", "high")):
        known = (labels[:TRAINING] < 5) == (name == "low")
        networks[name] = train(images[:TRAINING][known], labels[:TRAINING][known], 2 * seed + part)
    chosen = [networks[name] for name in EXPERTS]
    with torch.no_grad():
        return Digits(
            inner=np.stack([network[0](images).numpy() for network in chosen]),
            outer=np.stack([network[2].weight.numpy().T for network in chosen]),
            bias=np.stack([network[2].bias.numpy() for network in chosen]),
            labels=data.target,
        )


def train(images: torch.Tensor, labels: torch.Tensor, seed: int, steps: int = 10) -> nn.Sequential:
    """A network after a few full-batch steps of Adam; its start is PyTorch's, drawn from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network


def coordinates(low: float = 0.0, high: float = 3.0) -> list[Coordinate]:
    """The 34 coefficients, `weight.l<block>.<network>`, block by block.

    After ten steps the networks are far too unsure of themselves, so merges may be larger than their parents.
    """
    return [
        Coordinate(f"weight.l{block}.{expert}", low, high, 0.5, log=False, depth=block)
        for block in range(BLOCKS)
        for expert in EXPERTS
    ]


def starts() -> list[Genome]:
    """The uniform average, and each network alone."""
    names = [coordinate.name for coordinate in coordinates()]
    return [dict.fromkeys(names, 0.5)] + [{name: float(name.endswith(e)) for name in names} for e in EXPERTS]


def matrix(genome: Genome) -> np.ndarray:
    """A genome's coefficients, (2, 17)."""
    return np.array([[float(genome[f"weight.l{b}.{e}"]) for b in range(BLOCKS)] for e in EXPERTS])


def search(seed: int, sampler: str, metric: str, fidelity: Fidelity, evaluations: int) -> list[tuple[float, float]]:
    """A search on the training images: (evaluations of all of them, test accuracy of what is recommended).

    seed: of the networks and of the search.
    """
    digits = prepare(seed)
    scores = {"accuracy": digits.accuracy, "loglikelihood": digits.log_likelihood}[metric]
    curve: list[tuple[float, float]] = []

    def watch(spent: int, lines: Sequence[Line], recommended: Genome | None) -> None:
        whole = [line for line in lines if line.all_documents]
        best = max(whole, key=lambda line: line.value or 0.0).genome if whole else recommended
        if best is not None:
            curve.append((spent / TRAINING, float(digits.accuracy(matrix(best), TEST).mean())))

    maximize(
        lambda genome, ids: scores(matrix(genome), np.asarray(ids)),
        coordinates(),
        TRAINING,
        sampler=sampler,
        fidelity=fidelity,
        budget=evaluations * TRAINING,
        seed=seed,
        starts=starts(),
        watch=watch,
    )
    return curve
