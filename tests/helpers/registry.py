"""An OptunaHub registry on disk, so that no test asks the network for a package."""

from __future__ import annotations

from pathlib import Path


def write_registry(folder: Path) -> Path:
    """Writes a registry of one package, `tiny`, whose sampler is Optuna's TPE, and returns the folder."""
    (folder / "tiny").mkdir()
    text = "from optuna.samplers import TPESampler\n\n\nclass Tiny(TPESampler):\n    pass\n"
    (folder / "tiny/__init__.py").write_text(text)
    return folder
