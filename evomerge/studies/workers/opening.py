"""Opens the pool that an experiment asks for."""

from __future__ import annotations

import dataclasses

from evomerge.studies.candidates.setup import Setup
from evomerge.studies.workers.inline_pool import InlinePool
from evomerge.studies.workers.jobs import Pool
from evomerge.studies.workers.ray_pool import RayPool
from evomerge.studies.workers.resources import Workers, cores, plan_workers


def open_pool(config: Workers, setup: Setup) -> Pool:
    """Starts the workers and waits until each is ready.

    Raises:
        EvomergeError: a worker cannot be set up; the message is the worker's own.
    """
    if config.backend == "inline":
        import torch

        resources = plan_workers(config, cores(), torch.cuda.device_count())
        return InlinePool(dataclasses.replace(setup, device=resources.device, threads=resources.threads))
    return RayPool(config, setup)
