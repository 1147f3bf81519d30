"""Peak memory of one call of each side, in a fresh process, beyond the loaded model.

The process loads the model, overwrites its weights and forwards a few tokens, so that its pages are in memory and
what torch sets up once is there. Then the kernel's mark of the highest resident size is put back (clear_refs), the
side is built and called once, and the mark is read again. lm-eval gets a subset of the documents, enough for its
largest batches; the scorer gets all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def can_measure() -> bool:
    """Whether this system keeps a mark of the highest resident size that can be put back."""
    return os.access("/proc/self/clear_refs", os.W_OK)


def peak(request: dict[str, Any]) -> int:
    """The peak memory of one call, in bytes.

    request: has the keys side, model, dtype, seed, threads, folder, task, batch and limit.
    """
    command = [sys.executable, __file__, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the process that measures memory failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


def _resident(mark: str) -> int:
    """This process's resident size in bytes. mark: VmHWM for the highest, VmRSS for the present one."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{mark}:"))


def _child(request: dict[str, Any]) -> None:
    import torch
    from bench_scoring_models import Candidates, load
    from bench_scoring_sides import Ours, Stock

    torch.set_num_threads(request["threads"])
    subject = load(request["model"], request["dtype"], request["seed"])
    Candidates(subject.model, request["seed"]).next()
    with torch.no_grad():
        subject.model(input_ids=torch.tensor([[1, 2, 3, 4]]))
    folder = Path(request["folder"])
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if request["side"] == "stock":
        Stock(subject, folder).run(request["task"], request["batch"], request["limit"])
    else:
        Ours(subject, folder, request["task"]).run()
    print(_resident("VmHWM") - before)


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
