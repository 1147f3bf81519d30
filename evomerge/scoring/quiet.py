"""Silence and seeds around lm-eval, each put back as it was."""

from __future__ import annotations

import functools
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import lm_eval.utils
import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

FEWSHOT_SEED: int = DEFAULT_OTHER_SEED


_LOGGERS = ("lm_eval", "transformers", "datasets")


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval, datasets and transformers log nothing, warn of nothing and show no bars meanwhile."""
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
def building() -> Iterator[None]:
    """lm-eval builds prompts without its bar, and compiles each prompt template once instead of per document."""
    module, environment = lm_eval.api.task, lm_eval.utils.env
    bar = module.tqdm
    module.tqdm = functools.partial(bar, disable=True)
    environment.from_string = functools.cache(environment.from_string)
    try:
        yield
    finally:
        module.tqdm = bar
        del environment.from_string


@contextmanager
def seeded(device: torch.device | None = None) -> Iterator[None]:
    """The global generators stand where `lm_eval.simple_evaluate` sets them, and are put back afterwards.

    device: a CUDA device whose generator is set and put back too.
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
