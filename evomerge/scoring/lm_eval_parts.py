"""The parts of lm-eval that it does not document. Each is used in this module alone.

`tests/scoring/test_lm_eval_canary.py` has a test for each of them, whose message names the part that went.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval.api.task
import lm_eval.tasks
import lm_eval.utils
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.api.utils import maybe_delimit
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

TASKS_FOLDER = Path(lm_eval.tasks.__file__).parent
"""The folder of lm-eval's own tasks: one folder a family, YAML files in it."""


class NotingModel(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face model, stopped where it has tokenized log-likelihoods and would forward them."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._noted: list[tuple[list[int], list[int]]] = []
        super().__init__(*arguments, **keywords)

    def noted(self, method: Callable[..., Any], instance: Instance) -> list[tuple[list[int], list[int]]]:
        """The contexts and answers, as token ids, that a method of this model would forward for one request."""
        self._noted = []
        method([instance], disable_tqdm=True)
        return self._noted

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        """Notes what would be forwarded, and answers anything."""
        self._noted += [(context, answer) for _, context, answer in requests]
        return [(0.0, False)] * len(requests)


def generation_options(keywords: Any, max_tokens: int, eos: str) -> tuple[dict[str, Any], list[Any], int]:
    """What lm-eval makes of a task's `generation_kwargs`.

    Args:
        max_tokens: the greatest length of an answer where the task gives none.
        eos: the end-of-text token, as text.

    Returns: keywords of `model.generate`, stop strings, and the answer's greatest length in tokens.
    """
    options = dict(normalize_gen_kwargs(keywords, max_tokens))
    until = handle_stop_sequences(options.pop("until", None), eos=eos)
    return options, until, options.pop("max_gen_toks")


def cut_at_stops(text: str, until: Sequence[str]) -> str:
    """A generated text up to its first stop string."""
    cut: str = postprocess_generated_text(text, list(until), None)
    return cut


def reference_continuation(task: ConfigurableTask, record: Any, answer: str, *, chat: bool) -> str:
    """How a reference answer follows its prompt in lm-eval's few-shot examples (`ConfigurableTask.build_qa_turn`).

    It stands after the beginning that the prompt makes for it; without one, after the target delimiter in plain
    text, or as a turn of its own where `chat` is True.
    """
    beginning = task.doc_to_prefix(record)
    if beginning:
        return str(maybe_delimit(beginning, answer)[len(beginning) :])
    return answer if chat else f"{task.fewshot_cfg.target_delimiter}{answer}"


def apply_filters(task: Task, instances: Sequence[Instance]) -> list[str]:
    """Runs a task's filters over answered requests, and returns the filters' names in order."""
    for ensemble in task._filters:
        ensemble.apply(instances)
    return list(instances[0].filtered_resps)


def filter_names(task: Task) -> list[str]:
    """The names of a task's filters in order."""
    return [ensemble.name for ensemble in task._filters]


def task_names(group: Group) -> list[str]:
    """The names of the tasks of a group and of the groups inside it, as often as they stand there."""
    return [task.task_name for task in group.get_all_tasks()]


def ignores_sizes(group: Group) -> bool:
    """Whether a group aggregates some metric, and all that it aggregates by `weight_by_size: false`."""
    listed = group.aggregate_metric_list or []
    return bool(listed) and not any(one.weight_by_size for one in listed)


def aggregated(
    group: Group, scores: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int] | None = None
) -> dict[str, float]:
    """What lm-eval makes of scores of a group's tasks: `metric,filter` -> score; {} where it aggregates none.

    Args:
        scores: task -> `metric,filter` -> score.
        sizes: task -> the number of its documents; 1 by default.
    """
    tasks = {name: {**own, "sample_len": 1 if sizes is None else sizes[name]} for name, own in scores.items()}
    found: dict[str, Any] = dict(group.aggregate(tasks))
    keys = {key for own in scores.values() for key in own}
    return {key: float(value) for key, value in found.items() if key in keys}


def knows(manager: TaskManager, name: Any) -> bool:
    """Whether a task manager has a task, group or tag of this name."""
    return isinstance(name, str) and name in manager.task_index


def is_task(manager: TaskManager, name: str) -> bool:
    """Whether a task manager has a task of this name, no group or tag."""
    return knows(manager, name) and manager.task_index[name].kind in (Kind.TASK, Kind.PY_TASK)


def is_local(manager: TaskManager, name: Any, inside: tuple[Any, ...] = ()) -> bool:
    """Whether a task manager has a task or tag of this name, or a group with all its members.

    Args:
        name: a name; or a member of a group as its file has it, which may be a group written out.
        inside: the names of the groups around it. One that holds itself is left for lm-eval to refuse.
    """
    if isinstance(name, Mapping) and not knows(manager, name.get("group")):
        members = name.get("task")
        members = [members] if isinstance(members, str) else members
        return _are_local(manager, members, inside)
    name = name["group"] if isinstance(name, Mapping) else name
    if not knows(manager, name):
        return False
    entry = manager.task_index[name]
    if entry.kind is not Kind.GROUP or name in inside:
        return True
    return _are_local(manager, (entry.cfg or {}).get("task"), (*inside, name))


def _are_local(manager: TaskManager, members: Any, inside: tuple[Any, ...]) -> bool:
    """Whether a task manager has all members of a group."""
    return isinstance(members, list) and all(is_local(manager, one, inside) for one in members)


def yaml_path(manager: TaskManager, name: str) -> Path | None:
    """The YAML file that defines a task; None where there is none."""
    path: Path | None = manager.task_index[name].yaml_path
    return path


def check_yaml(path: Path) -> None:
    """Reads a task file, and raises whatever lm-eval raises of it; lm-eval itself passes over it in silence."""
    load_yaml(path, resolve_func=False)


@contextmanager
def fast_prompts() -> Iterator[None]:
    """lm-eval builds prompts without its bar, and compiles each prompt template once instead of once a document."""
    module, environment = lm_eval.api.task, lm_eval.utils.env
    bar = module.tqdm
    module.tqdm = functools.partial(bar, disable=True)
    environment.from_string = functools.cache(environment.from_string)
    try:
        yield
    finally:
        module.tqdm = bar
        del environment.from_string
