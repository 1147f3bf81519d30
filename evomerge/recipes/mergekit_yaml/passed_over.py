"""What mergekit knows, but passes over where it stands. It is passed over here as well, and noted.

mergekit looks up the parameters of its method and nothing else, so published configurations carry others along.
A name that mergekit knows nowhere is a slip of the pen, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

_PARAMETERS = """
weight density gamma epsilon lambda normalize rescale int8_mask t scale select_topk filter_wise max_iter tol eps
normalize_weights nuslerp_flatten nuslerp_row_wise embed_slerp r alpha n_m_ratio default_n_m_ratio pruning_order
"""
_RUN_OPTIONS = """
allow_crimes async_write clone_tensors copy_tokenizer cuda device gpu_rich lazy_unpickle lora_merge_cache
lora_merge_dtype low_cpu_memory multi_gpu num_threads out_shard_size quiet random_seed read_to_gpu
safe_serialization transformers_cache trust_remote_code verbosity write_model_card
"""

PARAMETERS = frozenset(_PARAMETERS.split())  # of all of mergekit's methods, and of former versions
RUN_OPTIONS = frozenset(_RUN_OPTIONS.split())  # of mergekit's command line, which some configurations repeat

# What may stand outside of `parameters`. `random_seed` is not among them: it seeds the masks.
AT_THE_TOP = (RUN_OPTIONS - {"random_seed"}) | {"int8_mask"}

STORAGE = "changes how mergekit stores a mask, and no result"
COMMAND_LINE = "is an option of mergekit's command line, and changes nothing in a file"
ONE_FOR_ALL = "holds for all models, and mergekit passes it over beside one of them; to make it count, move it up"
OF_THE_BASE = "changes nothing beside the base, whose task vector is 0"
UNREACHED = "stands after a value without a filter, so it never counts"


def not_of(method: str) -> str:
    """The note on a parameter that another method has."""
    return f"is no parameter of mergekit's {method}, which passes it over"


class Notes:
    """Collects what was passed over: one note for each name and reason, whatever the number of places."""

    def __init__(self) -> None:
        self._paths: dict[tuple[str, str], list[str]] = {}

    def add(self, path: str, reason: str) -> None:
        """Notes that what stands at a path in the file is passed over."""
        self._paths.setdefault((path.rpartition(".")[2], reason), []).append(path)

    def lines(self) -> tuple[str, ...]:
        """The notes, one a line."""
        return tuple(f"{_places(paths)}: {reason}" for (_, reason), paths in self._paths.items())


def _places(paths: Iterable[str]) -> str:
    """The first of several paths, and how many more there are."""
    first, *more = dict.fromkeys(paths)
    return first + (f" and {len(more)} more like it" if more else "")
