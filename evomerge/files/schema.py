"""The strict schema of every file that a person writes, and its faults as lines for people."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """The base class of all values that are read from a person's file: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


def faults_of(error: ValidationError) -> list[str]:
    """The faults in a pydantic error as lines, each with its path in the file."""
    faults = []
    for detail in error.errors():
        path = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        for line in message.splitlines():
            prefix = f"{path}: " if path else ""
            if detail["type"] == "extra_forbidden":
                line = "is no key here; check its spelling, or remove it"
            elif detail["type"] == "missing":
                line = "is missing"
            faults.append(prefix + line)
    return faults
