"""Where a model comes from: a folder or a Hub id, with its revision and the hash of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from evomerge.files.schema import Strict


class Source(Strict):
    """A checkpoint: where it is found, and what its weights hash to."""

    model: str
    revision: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        return self.model + (f"@{self.revision}" if self.revision else "")

    def identity(self) -> str:
        """What the recipe's hash takes: the content, wherever it lies."""
        return self.sha256 or str(self)


def parse_source(value: Any) -> Any:
    """`model` or `model@revision` as a mapping; anything else as it is."""
    if not isinstance(value, str):
        return value
    model, at, revision = value.rpartition("@")
    if at and "/" not in revision:
        return {"model": model, "revision": revision}
    return {"model": value}


SourceField = Annotated[Source, BeforeValidator(parse_source)]


Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


Vocabulary = Literal["base", "union"]


def relocate(source: Source, folder: Path) -> Source:
    """The source with a local path made absolute; a Hub id stays as it is."""
    local = (folder / Path(source.model).expanduser()).resolve()
    explicit = source.model.startswith((".", "/", "~"))
    if source.revision is None and (explicit or local.exists() or source.model.count("/") != 1):
        return source.model_copy(update={"model": str(local)})
    return source
