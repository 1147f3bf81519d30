"""Silence and seeds around lm-eval's code; both are put back afterwards."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

FEWSHOT_SEED: int = DEFAULT_OTHER_SEED
"""The seed from which `lm_eval.simple_evaluate` draws few-shot examples."""

_LOGGERS = ("lm_eval", "transformers", "datasets")


@contextmanager
def quiet() -> Iterator[None]:
    """Within this context lm-eval, datasets and transformers log nothing, warn of nothing and show no bars."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def seeded(device: torch.device | None = None) -> Iterator[None]:
    """Within this context the global random generators have the seeds that `lm_eval.simple_evaluate` sets.

    Args:
        device: a CUDA device whose generator is seeded and put back too.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cuda: list[Any] = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
