"""mergekit's side of the merge benchmark. Its interpreter has mergekit and needs nothing of evomerge.

Reads requests from standard input, a line of JSON each, and answers each with one on standard output:

    {"load": [base folder, expert folder, ...]}                reads the checkpoints into memory
    {"versions": true}                                         answers the versions of mergekit, torch and Python
    {"method": ..., "threads": ..., "parameters": {tensor: {...}}}   sets what is merged next
    {"warm": dtype}                                            merges the smallest tensors
    {"merge": dtype}                                           merges all and answers {"seconds": ...}
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from safetensors.torch import load_file

_WARM = 16  # tensors


class Side:
    """The loaded checkpoints and what is to be done with them."""

    def __init__(self) -> None:
        self.groups: dict[str, TensorGroup] = {}
        self.method: Any = None
        self.parameters: dict[str, dict[str, Any]] = {}

    def load(self, folders: list[str]) -> None:
        """Reads base and experts into memory of this process."""
        models: list[dict[str, torch.Tensor]] = []
        for folder in folders:
            model = {}
            for file in sorted(Path(folder).glob("*.safetensors")):
                model.update({name: tensor.clone() for name, tensor in load_file(file).items()})
            models.append(model)
        for name in sorted(models[0], key=lambda name: models[0][name].numel()):
            self.groups[name] = TensorGroup.from_tensors([m[name] for m in models], base_index=0, name=name)

    def merge(self, names: list[str], dtype: str) -> float:
        """Merges these tensors one by one and drops each result; the seconds it took."""
        torch.manual_seed(0)
        start = time.perf_counter()
        with torch.no_grad():
            for name in names:
                self.method(
                    [self.groups[name]],
                    parameters=self.parameters[name],
                    dtype=getattr(torch, dtype),
                    out_dtype=torch.bfloat16,
                )
        return time.perf_counter() - start

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what a request asks for."""
        if "load" in request:
            self.load(request["load"])
        elif "method" in request:
            torch.set_num_threads(request["threads"])
            self.method, self.parameters = registry.get(request["method"]), request["parameters"]
        elif "warm" in request:
            self.merge(list(self.groups)[:_WARM], request["warm"])
        elif "merge" in request:
            return {"seconds": self.merge(list(self.groups), request["merge"])}
        elif "versions" in request:
            versions = {name: importlib.metadata.version(name) for name in ("mergekit", "torch")}
            return {**versions, "Python": platform.python_version()}
        return {}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what mergekit prints is no answer
    side = Side()
    for request in sys.stdin:
        answers.write(json.dumps(side.answer(json.loads(request))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
