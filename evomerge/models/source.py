"""Where a model comes from: a folder or a Hub id, with its revision and the hash of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

from evomerge.files.schema import Strict


class Source(Strict):
    """Where a checkpoint is found, and the hash of its weights.

    Attributes:
        model: a folder, or a Hub id (`org/name`).
        revision: the Hub's branch, tag or commit; None takes the main branch.
        sha256: the hash of the weights; None if it is not known yet.
        trust_remote_code: whether to run the Python code that the folder brings along; None never does.
    """

    model: str
    revision: str | None = None
    sha256: str | None = None
    trust_remote_code: Annotated[bool | None, AfterValidator(lambda trust: trust or None)] = None

    @property
    def trusted(self) -> bool:
        """Whether its own code may run."""
        return bool(self.trust_remote_code)

    def __str__(self) -> str:
        return self.model + (f"@{self.revision}" if self.revision else "")

    def identity(self) -> str:
        """What stands for the checkpoint in a recipe's hash: its weights' hash, or its name if there is none."""
        return self.sha256 or str(self)


def parse_source(value: Any) -> Any:
    """The mapping that a text `model` or `model@revision` stands for. Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    model, at, revision = value.rpartition("@")
    if at and "/" not in revision:
        return {"model": model, "revision": revision}
    return {"model": value}


SourceField = Annotated[Source, BeforeValidator(parse_source)]
Dtype = Literal["float32", "bfloat16", "float16"]  # what merged models may be kept in
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Vocabulary = Literal["base", "union"]  # what to do where vocabularies differ, see `models.vocabulary`


def relocate(source: Source, folder: Path) -> Source:
    """A source whose local path is absolute. A Hub id is returned unchanged.

    Args:
        folder: the folder to which a relative path is relative.
    """
    local = (folder / Path(source.model).expanduser()).resolve()
    explicit = source.model.startswith((".", "/", "~"))
    if source.revision is None and (explicit or local.exists() or source.model.count("/") != 1):
        return source.model_copy(update={"model": str(local)})
    return source
