"""How samplers do their arithmetic: by themselves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def alone() -> Iterator[None]:
    """One BLAS thread, for equal bits and, on a busy machine, speed; and none of the packages' warnings."""
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
