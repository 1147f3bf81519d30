"""Model folders that bring Python code along. It runs only where a person says so, under `trust_remote_code`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from evomerge.errors import CheckpointError
from evomerge.files.json_mapping import read_mapping

_MAP = "auto_map"  # the key under which a folder names classes of its own


def refuse_custom_code(folder: Path, where: str = "", *, trust: bool) -> None:
    """Refuses a folder that transformers cannot open without running the folder's code.

    Folders that name code of their own for a model which transformers knows are opened by transformers' classes.

    Args:
        where: what names the model in a person's file, for the message.

    Raises:
        CheckpointError: the folder needs its own code, which is not trusted.
    """
    if trust:
        return
    config, tokenizer = read_mapping(folder / "config.json"), read_mapping(folder / "tokenizer_config.json")
    needed = []
    if config.get(_MAP) and config.get("model_type") not in CONFIG_MAPPING_NAMES:
        needed.append(("config.json", config[_MAP]))
    own = tokenizer.get(_MAP)
    if own and tokenizer_class_from_name(str(tokenizer.get("tokenizer_class"))) is None:
        needed.append(("tokenizer_config.json", own))
    for name, classes in needed:
        raise CheckpointError(
            f"{f'{where}: ' if where else ''}{folder / name} asks for Python code of the folder's own "
            f"({_shown(classes)}), and evomerge runs none; if you have read it and trust it, say "
            "`trust_remote_code: true` under this model in the experiment or recipe"
        )


def _shown(classes: Any) -> str:
    """The classes that a folder names, for a message."""
    given = list(classes.values()) if isinstance(classes, dict) else [classes]
    names = [one for entry in given for one in (entry if isinstance(entry, list) else [entry])]
    return ", ".join(sorted({str(name).partition(".")[0] + ".py" for name in names if isinstance(name, str)}))
