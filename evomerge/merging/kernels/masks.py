"""Counter-based random masks: element i's uniform is a pure function of (seed, expert, tensor, i).

DARE (Yu et al. 2024, arXiv 2311.03099, eq. 2) drops elements of a task vector at random. Here the randomness is
hashed, not drawn: there is no generator state, and the bits are equal on every device, at any thread count and in
any order of evaluation. One study uses the same uniforms for every candidate (common random numbers), so raising a
density only adds elements.

The hash is a keyed variant of Wellons' `lowbias32` (two xorshift-multiply rounds, bias 0.17): the second key
enters between the rounds, so that two experts' masks are not shuffles of one another. It is written in wrapping
int32 arithmetic, because torch has no uint32 arithmetic on every device.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_LOW16, _LOW17 = 0xFFFF, 0x1FFFF
_MULTIPLY_1 = 0x7FEB352D
_MULTIPLY_2 = 0x846CA68B - (1 << 32)  # as int32


def salt(seed: int, expert: str, tensor: str) -> tuple[int, int]:
    """The two int32 keys of the mask of one expert's tensor, a hash of their names and the seed."""
    digest = hashlib.sha256(f"{seed}\x00{expert}\x00{tensor}".encode()).digest()
    return (
        int.from_bytes(digest[:4], "little", signed=True),
        int.from_bytes(digest[4:8], "little", signed=True),
    )


def cutoff(density: float) -> int:
    """The largest int32 for which an element is kept: `bits` are at most that with probability `density`.

    density: in (0, 1]. At 1 every element is kept; the probability is exact to 2⁻³².
    """
    return max(round(density * 2**32), 1) - 1 - 2**31


def bits(index: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The hash of each element's number under two keys.

    Args:
        index: int32, the elements' numbers, any shape. Past 2³² elements they wrap, and the mask repeats.
        first, second: int32, the keys, broadcastable.

    Returns:
        int32, of the shape of `index`, uniform over the whole int32 range.
    """
    x = index ^ first
    x = x ^ ((x >> 16) & _LOW16)  # >> keeps the sign; the mask makes it a logical shift
    x = x * _MULTIPLY_1
    x = (x ^ ((x >> 15) & _LOW17)) + second
    x = x * _MULTIPLY_2
    return x ^ ((x >> 16) & _LOW16)
