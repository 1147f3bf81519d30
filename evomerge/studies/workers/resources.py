"""How many workers a machine carries, with how many threads each, and whether each has a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from evomerge.errors import WorkerError
from evomerge.files.schema import Strict

Auto = Literal["auto"]


class Workers(Strict):
    """An experiment's `workers`: the processes that evaluate candidates.

    Attributes:
        backend: `ray` runs worker processes; `inline` runs in this process.
        count: number of workers; `auto` is one for each GPU, else one for each core.
        gpus: how many GPUs to use, one for each worker; `auto` is all there are.
        threads: CPU threads of each worker; `auto` is 1 without a GPU (two workers of one thread beat one of two,
            and results then do not depend on the number of workers), else the cores divided by the workers.
        address: a Ray cluster to join; a local one is started by default.
        timeout: seconds after which a candidate counts as failed.
        retries: how often a candidate whose worker died is tried again.
    """

    backend: Literal["ray", "inline"] = "ray"
    count: Auto | Annotated[int, Field(ge=1)] = "auto"
    gpus: Auto | Annotated[int, Field(ge=0)] = "auto"
    threads: Auto | Annotated[int, Field(ge=1)] = "auto"
    address: str | None = None
    timeout: float | None = Field(default=None, gt=0.0)
    retries: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _without_ray(self) -> Workers:
        if self.backend == "inline":
            keys = [key for key in _RAYS_OWN if getattr(self, key) != type(self).model_fields[key].default]
            if keys:
                raise ValueError(
                    "\n".join(f"{key}: has no meaning with backend: inline; remove it" for key in keys)
                )
        return self


_RAYS_OWN = ("count", "address", "timeout", "retries")  # keys that have no meaning with backend: inline


@dataclass(frozen=True)
class Resources:
    """How many workers there are, and what each of them gets.

    Attributes:
        count: the number of workers.
        device: `cuda` or `cpu`.
        threads: the CPU threads of each worker.
    """

    count: int
    device: str
    threads: int


def plan_workers(config: Workers, cores: int, gpus: int) -> Resources:
    """Decides on the workers of a machine: what `auto` comes to.

    Args:
        config: the experiment's `workers`.
        cores, gpus: the numbers of cores and GPUs that the machine has.

    Raises:
        WorkerError: there are fewer GPUs than are asked for.
    """
    use = gpus if config.gpus == "auto" else config.gpus
    if use > gpus:
        raise WorkerError(f"workers.gpus: is {use}, but there are {gpus}; lower it or set it to auto")
    if config.backend == "inline":
        count = 1
    elif config.count == "auto":
        count = use or cores
    else:
        count = config.count
        if use and count > use:
            raise WorkerError(f"workers.count: is {count}, but there are {use} GPUs, and each worker takes one")
    shared = max(1, cores // count) if use else 1
    threads = shared if config.threads == "auto" else config.threads
    return Resources(count, "cuda" if use else "cpu", threads)


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
