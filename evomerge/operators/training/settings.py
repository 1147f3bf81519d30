"""What a training can be asked for, as options and as the code that acts on them name it. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evomerge.files.schema import Strict

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
Weights = Literal["lora", "full"]  # what is trained: low-rank adapters, or all weights
Decay = Literal["linear", "cosine"]


class Loss(Strict):
    """What is learned of each token.

    Attributes:
        kind: the divergence from the teacher's answers.
        temperature: the temperature at which teacher and student are compared.
        hard: the share of the cross-entropy of the texts' own tokens in the loss; with 1.0 no teacher answers.
        beta: the teacher's share of the mixture in `jsd`.
    """

    kind: Divergence = "forward_kl"
    temperature: float = Field(default=1.0, gt=0.0)
    hard: float = Field(default=0.0, ge=0.0, le=1.0)
    beta: float = Field(default=0.5, gt=0.0, lt=1.0)

    @property
    def answered(self) -> bool:
        """Whether teachers' answers are learned."""
        return self.hard < 1.0
