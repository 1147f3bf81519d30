"""Counter-based random masks: element i's uniform is a pure function of (seed, expert, tensor, i).

DARE (Yu et al. 2024, eq. 2) drops elements of a task vector at random. Here the randomness is hashed, not
drawn: there is no generator state, and the bits are equal on every device, at any thread count and in any
order of evaluation. One study uses the same uniforms for every candidate (common random numbers), so raising
a density only ever adds elements.

The hash is a keyed variant of Wellons' `lowbias32` (two xorshift-multiply rounds, bias 0.17): the second key
enters between the rounds, so that two experts' masks are not shuffles of one another. It is written in
wrapping int32 arithmetic, which torch has everywhere; uint32 it has not.
"""

from __future__ import annotations

import hashlib

import torch

_LOW16, _LOW17 = 0xFFFF, 0x1FFFF


_MULTIPLY_1 = 0x7FEB352D


_MULTIPLY_2 = 0x846CA68B - (1 << 32)  # as int32


def salt(seed: int, expert: str, tensor: str) -> tuple[int, int]:
    """Two int32 keys of the mask of one expert's tensor."""
    digest = hashlib.sha256(f"{seed}\x00{expert}\x00{tensor}".encode()).digest()
    return (
        int.from_bytes(digest[:4], "little", signed=True),
        int.from_bytes(digest[4:8], "little", signed=True),
    )


def cutoff(density: float) -> int:
    """The int32 that `bits` may reach for an element to be kept with probability `density`, in (0, 1].

    At density 1 every element is kept; the probability is exact to 2⁻³².
    """
    return max(round(density * 2**32), 1) - 1 - 2**31


def bits(index: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Uniform int32 bits.

    Args:
        index: int32 element indices, any shape. Past 2³² elements they wrap, and the mask repeats.
        first: int32 key, broadcastable.
        second: int32 key, broadcastable.

    Returns:
        int32, the shape of `index`, uniform over the whole int32 range.
    """
    x = index ^ first
    x = x ^ ((x >> 16) & _LOW16)  # >> keeps the sign; the mask makes it a logical shift
    x = x * _MULTIPLY_1
    x = (x ^ ((x >> 15) & _LOW17)) + second
    x = x * _MULTIPLY_2
    return x ^ ((x >> 16) & _LOW16)
