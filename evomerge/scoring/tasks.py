"""lm-eval's own Task objects, found by name, prompted once, and taken apart into documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from evomerge.errors import ConfigError, EvomergeError, one_line
from evomerge.scoring.lm_eval_parts import fast_prompts, yaml_path
from evomerge.scoring.quiet import FEWSHOT_SEED, quiet, seeded
from evomerge.scoring.rendering import digest, question, reference_answers, reference_requests, remember_renderings
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.task_names import task_manager

ANSWERED = ("loglikelihood", "loglikelihood_rolling", "generate_until")
"""The kinds of request that are answered."""

_TELLING = 8  # characters of a question by which a document is known


@dataclass(frozen=True)
class Document:
    """One document of a task.

    Attributes:
        record: lm-eval's own data of it.
        instances: its prompted requests.
        references: log-likelihood requests of its reference answers, where these were asked for.
        digest: the sha256 of its own question and answers.
    """

    record: Any
    instances: tuple[Instance, ...]
    references: tuple[Instance, ...]
    digest: str


@dataclass(frozen=True)
class Expanded:
    """The task, group or tag of a spec.

    Attributes:
        names: of the tasks that it stands for.
        group: lm-eval's group; None for a task or tag.
    """

    names: tuple[str, ...]
    group: Group | None


@dataclass(frozen=True)
class BuiltTask:
    """An lm-eval task whose requests are built. `documents[i]` has the document id i."""

    name: str
    task: Task
    documents: tuple[Document, ...]


def build_tasks(
    specs: Sequence[TaskSpec], include: Path | None, chat_template: Callable[..., str] | None
) -> tuple[dict[str, Expanded], dict[str, BuiltTask]]:
    """The tasks that each spec stands for, by its name, and all these tasks, built.

    Each task is loaded and prompted under the seeds of `lm_eval.simple_evaluate`, so that its prompts are
    lm-eval's and do not depend on which other tasks there are.

    Args:
        include: folder of local task YAML files.
        chat_template: wraps the turns of a prompt; None leaves prompts plain.

    Raises:
        ConfigError: an unknown task, a task named twice, a task that cannot be built or scored.
    """
    manager = task_manager(specs, include)
    expanded: dict[str, Expanded] = {}
    tasks: dict[str, BuiltTask] = {}
    for spec in specs:
        with seeded(), fast_prompts():
            group, built = _build(manager, spec, chat_template)
        twice = [name for name in built if name in tasks]
        if twice or spec.task in expanded:
            raise ConfigError("fitness", [f"the task {(*twice, spec.task)[0]!r} is named twice"])
        expanded[spec.task] = Expanded(tuple(built), group)
        tasks.update(built)
    return expanded, tasks


def _build(
    manager: TaskManager, spec: TaskSpec, chat_template: Callable[..., str] | None
) -> tuple[Group | None, dict[str, BuiltTask]]:
    """lm-eval's group of one spec, None for a task or tag; and its tasks, by name."""
    if spec.num_fewshot is not None and spec.num_fewshot < 0:
        raise ConfigError(spec.task, [f"num_fewshot must be 0 or more, not {spec.num_fewshot}"])
    if spec.limit is not None and spec.limit < 1:
        raise ConfigError(spec.task, [f"limit must be 1 or more, not {spec.limit}"])
    try:
        loaded = manager.load([spec.task])
        tasks = {name: _build_one(name, task, spec, chat_template) for name, task in loaded["tasks"].items()}
        return loaded["groups"].get(spec.task), tasks
    except EvomergeError:
        raise
    except Exception as error:
        where = str(yaml_path(manager, spec.task) or spec.task)
        cause = "a group in it holds itself" if isinstance(error, RecursionError) else one_line(error)
        raise ConfigError(where, [f"task {spec.task!r} cannot be built: {cause}"]) from error


def _build_one(name: str, task: Task, spec: TaskSpec, chat_template: Callable[..., str] | None) -> BuiltTask:
    """Prompts one task and takes it apart into documents."""
    _refuse(name, task)
    _prompt(task, spec, chat_template)
    by_document = _requests_by_document(name, task)
    remember_renderings(task, [instances[0].doc for instances in by_document])
    references = _references(name, task, by_document, spec, chat=chat_template is not None)
    documents = (
        Document(instances[0].doc, instances, mine, digest(task, instances[0].doc))
        for instances, mine in zip(by_document, references, strict=True)
    )
    return BuiltTask(name, task, tuple(documents))


def _refuse(name: str, task: Task) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(name, ["it runs code that the model writes, which evomerge does not do"])
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(name, ["it shows images or audio; evomerge scores text"])


def _prompt(task: Task, spec: TaskSpec, chat_template: Callable[..., str] | None) -> None:
    """Builds all requests as `simple_evaluate` does, few-shot examples drawn from its seed."""
    if spec.num_fewshot is not None and task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=spec.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(
        limit=spec.limit,
        apply_chat_template=chat_template is not None,
        fewshot_as_multiturn=True,
        chat_template=chat_template,
    )


def _requests_by_document(name: str, task: Task) -> list[tuple[Instance, ...]]:
    """Each document's requests in order, documents by ascending id."""
    by_document: dict[int, list[Instance]] = {}
    for instance in task.instances:
        if instance.request_type not in ANSWERED:
            fault = f"it asks for {instance.request_type}; evomerge answers {', '.join(ANSWERED)}"
            raise ConfigError(name, [fault])
        by_document.setdefault(instance.doc_id, []).append(instance)
    ordered = (instances for _, instances in sorted(by_document.items()))
    return [tuple(sorted(instances, key=lambda instance: instance.idx)) for instances in ordered]


def _references(
    name: str, task: Task, by_document: Sequence[tuple[Instance, ...]], spec: TaskSpec, *, chat: bool
) -> list[tuple[Instance, ...]]:
    """Each document's requests of reference answers; () for all where they are not asked for."""
    # A metric of the task's own goes by that name before one of ours.
    asked = spec.reference and task.OUTPUT_TYPE == "generate_until" and "loglikelihood" not in task.aggregation()
    if not asked:
        return [()] * len(by_document)
    references = [reference_requests(task, instances, chat=chat) for instances in by_document]
    if not all(references):
        fault = f"document {references.index(())} has no reference answer, whose loglikelihood is asked for"
        raise ConfigError(name, [f"{fault}; name another metric"])
    return references


def document_texts(specs: Sequence[TaskSpec], include: Path | None) -> dict[str, list[str]]:
    """Task -> for each document, the text by which it is recognised in other texts.

    The text is the document's question; where that is short, the right answers stand behind it.

    Raises:
        ConfigError: as `build_tasks`.
    """
    with quiet():
        _, built = build_tasks(specs, include, None)
    return {
        name: [_telling_text(one.task, document.record) for document in one.documents]
        for name, one in built.items()
    }


def _telling_text(task: Task, record: Any) -> str:
    """A document's question, and behind a short one its right answers."""
    text = question(task, record)
    return text if len(text) >= _TELLING else " ".join([text, *reference_answers(task, record)])
