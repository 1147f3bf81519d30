"""How samplers do their arithmetic: on one thread, and without the libraries' warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def alone() -> Iterator[None]:
    """Holds BLAS to one thread, for equal bits and, on a busy machine, speed; and silences all warnings."""
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
