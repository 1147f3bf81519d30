"""lm-eval's own Task objects, found by name, prompted once, and taken apart into documents."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.api.utils import maybe_delimit
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from evomerge.errors import ConfigError, EvomergeError, one_line
from evomerge.scoring.quiet import FEWSHOT_SEED, building, quiet, seeded
from evomerge.scoring.reports import TaskSpec

_NAMED = re.compile(r"""^(?:task|group|tag): *["']?([\w.+-]+)""", re.MULTILINE)

ANSWERED = ("loglikelihood", "loglikelihood_rolling", "generate_until")


@dataclass(frozen=True)
class Document:
    """One document of a task: lm-eval's record, its prompted requests, and a hash of its own question.

    references: log-likelihood requests of its reference answers, where these were asked for.
    """

    record: Any
    instances: tuple[Instance, ...]
    references: tuple[Instance, ...]
    digest: str


@dataclass(frozen=True)
class BuiltTask:
    """An lm-eval task whose requests are built. `documents[i]` has the document id i."""

    name: str
    task: Task
    documents: tuple[Document, ...]


def build_tasks(
    specs: Sequence[TaskSpec], include: Path | None, chat_template: Callable[..., str] | None
) -> tuple[dict[str, tuple[str, ...]], dict[str, BuiltTask]]:
    """The tasks of each spec by name, and all tasks, built.

    Each task is loaded and prompted under the seeds of `lm_eval.simple_evaluate`, so that its prompts are
    lm-eval's and do not depend on which other tasks there are.

    Raises:
        ConfigError: an unknown task, a task named twice, a task that cannot be built or scored.
    """
    manager = _manager(specs, include)
    expanded: dict[str, tuple[str, ...]] = {}
    tasks: dict[str, BuiltTask] = {}
    for spec in specs:
        with seeded(), building():
            built = _build(manager, spec, chat_template)
        twice = [name for name in built if name in tasks]
        if twice or spec.task in expanded:
            raise ConfigError("fitness", [f"the task {(*twice, spec.task)[0]!r} is named twice"])
        expanded[spec.task] = tuple(built)
        tasks.update(built)
    return expanded, tasks


def _manager(specs: Sequence[TaskSpec], include: Path | None) -> TaskManager:
    """Knows all names of the specs.

    Indexing lm-eval's own 15,000 names takes many seconds. It is done for its groups and tags only: a task of
    ours needs none of them, and one of its tasks needs those folders only that mention it.
    """
    if include is not None and not include.is_dir():
        raise ConfigError("fitness", [f"include: there is no folder {include}"])
    names = [spec.task for spec in specs]
    own = [] if include is None else [str(include)]
    local = TaskManager(include_path=own, include_defaults=False)
    foreign = [name for name in names if not _is_local(name, local)]
    if not foreign:
        return local
    folders, known = _mentions(tuple(foreign))
    unknown = [name for name in foreign if name not in local.task_index and not folders[name]]
    if not unknown:
        mentioned = sorted({folder for found in folders.values() for folder in found}, reverse=True)
        narrow = TaskManager(include_path=[*map(str, mentioned), *own], include_defaults=False)
        if all(_is_task(name, narrow) for name in foreign):
            return narrow
        whole = TaskManager(include_path=own)
        unknown = [name for name in foreign if name not in whole.task_index]
        if not unknown:
            return whole
    nearest = sorted(known.union(local.all_tasks))
    raise ConfigError("fitness", [_unknown(name, nearest, include) for name in unknown])


def _is_local(name: Any, local: TaskManager) -> bool:
    """Whether a task or tag, or a group with all its members, is defined under `include`."""
    entry = local.task_index.get(name) if isinstance(name, str) else None
    if entry is None or entry.kind is not Kind.GROUP:
        return entry is not None
    members = (entry.cfg or {}).get("task")
    return isinstance(members, list) and all(_is_local(member, local) for member in members)


def _is_task(name: str, manager: TaskManager) -> bool:
    entry = manager.task_index.get(name)
    return entry is not None and entry.kind in (Kind.TASK, Kind.PY_TASK)


@functools.lru_cache(maxsize=4)
def _mentions(names: tuple[str, ...]) -> tuple[dict[str, set[Path]], frozenset[str]]:
    """The folders of lm-eval's tasks whose YAML mentions each name; and names of tasks, groups and tags in all."""
    root = Path(lm_eval.tasks.__file__).parent
    folders: dict[str, set[Path]] = {name: set() for name in names}
    words = {name: re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])") for name in names}
    known: set[str] = set()
    for path in root.glob("*/**/*.yaml"):
        text = path.read_text(encoding="utf-8", errors="replace")
        known.update(_NAMED.findall(text))
        for name in names:
            if name in text and words[name].search(text):
                folders[name].add(root / path.relative_to(root).parts[0])
    return folders, frozenset(known)


def _unknown(name: str, known: Sequence[str], include: Path | None) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    broken = [] if include is None else _broken_yaml(include)
    return f"unknown task {name!r}.{hint}" + "".join(f" {fault}" for fault in broken)


def _broken_yaml(include: Path) -> list[str]:
    """What is wrong with task files that lm-eval passes over in silence."""
    faults = []
    for path in sorted(include.glob("**/*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:
            faults.append(f"{path} cannot be read: {one_line(error)}.")
    return faults


def _build(manager: TaskManager, spec: TaskSpec, chat_template: Callable[..., str] | None) -> dict[str, BuiltTask]:
    if spec.num_fewshot is not None and spec.num_fewshot < 0:
        raise ConfigError(spec.task, [f"num_fewshot must be 0 or more, not {spec.num_fewshot}"])
    if spec.limit is not None and spec.limit < 1:
        raise ConfigError(spec.task, [f"limit must be 1 or more, not {spec.limit}"])
    try:
        loaded = manager.load([spec.task])["tasks"]
        return {name: _prompt(name, task, spec, chat_template) for name, task in loaded.items()}
    except EvomergeError:
        raise
    except Exception as error:
        entry = manager.task_index[spec.task]
        where = str(entry.yaml_path or spec.task)
        raise ConfigError(where, [f"task {spec.task!r} cannot be built: {one_line(error)}"]) from error


def _prompt(name: str, task: Task, spec: TaskSpec, chat_template: Callable[..., str] | None) -> BuiltTask:
    """Builds all requests as `simple_evaluate` does, few-shot examples drawn from its seed."""
    _refuse(name, task)
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
    by_document: dict[int, list[Instance]] = {}
    for instance in task.instances:
        if instance.request_type not in ANSWERED:
            fault = f"it asks for {instance.request_type}; evomerge answers {', '.join(ANSWERED)}"
            raise ConfigError(name, [fault])
        by_document.setdefault(instance.doc_id, []).append(instance)
    _remember(task, [instances[0].doc for instances in by_document.values()])
    for instances in by_document.values():
        instances.sort(key=lambda instance: instance.idx)
    ordered = [tuple(instances) for _, instances in sorted(by_document.items())]
    chat = chat_template is not None
    # A metric of the task's own goes by that name before one of ours.
    asked = spec.reference and task.OUTPUT_TYPE == "generate_until" and "loglikelihood" not in task.aggregation()
    references = [_references(task, one, chat) if asked else () for one in ordered]
    if asked and not all(references):
        fault = f"document {references.index(())} has no reference answer, whose loglikelihood is asked for"
        raise ConfigError(name, [f"{fault}; name another metric"])
    documents = (
        Document(instances[0].doc, instances, found, _digest(task, instances[0].doc))
        for instances, found in zip(ordered, references, strict=True)
    )
    return BuiltTask(name, task, tuple(documents))


def _references(task: Task, instances: Sequence[Instance], chat: bool) -> tuple[Instance, ...]:
    """The log-likelihood requests of a document's reference answers; none where it generates nothing.

    An answer follows its prompt as in lm-eval's few-shot examples (`ConfigurableTask.build_qa_turn`): after the
    beginning that the prompt makes for it, after the target delimiter in plain text, or as a turn of its own.
    """
    first = instances[0]
    if first.request_type != "generate_until" or not isinstance(task, ConfigurableTask):
        return ()
    beginning = task.doc_to_prefix(first.doc)
    delimiter = "" if chat else task.fewshot_cfg.target_delimiter
    found = []
    for at, answer in enumerate(_answers(task, first.doc)):
        text = maybe_delimit(beginning, answer)[len(beginning) :] if beginning else f"{delimiter}{answer}"
        arguments = (first.args[0], text)
        found.append(Instance("loglikelihood", first.doc, arguments, at, (first.task_name, first.doc_id, 1)))
    return tuple(found)


def _answers(task: ConfigurableTask, record: Any) -> list[str]:
    """The different reference answers of a document that are not blank."""
    target = task.doc_to_target(record)
    choices = task.doc_to_choice(record) if task.config.doc_to_choice is not None else ()
    texts = [
        choices[one] if choices and isinstance(one, int) else one
        for one in (target if isinstance(target, list) else [target])
    ]
    written = (str(text) for text in texts if isinstance(text, str | int | float))
    return list(dict.fromkeys(text for text in written if text.strip()))


def _refuse(name: str, task: Task) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(name, ["it runs code that the model writes, which evomerge does not do"])
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(name, ["it shows images or audio; evomerge scores text"])


def _remember(task: Task, records: Sequence[Any]) -> None:
    """Renders each document's text, target and choices once: they do not depend on the candidate."""
    if not isinstance(task, ConfigurableTask):
        return
    known = {id(record) for record in records}
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, name, _remembered(getattr(task, name), known))


def _remembered(render: Callable[..., Any], known: set[int]) -> Callable[..., Any]:
    rendered: dict[int, Any] = {}

    def remembered(record: Any, *template: Any) -> Any:
        if template or id(record) not in known:
            return render(record, *template)
        if id(record) not in rendered:
            rendered[id(record)] = render(record)
        return rendered[id(record)]

    return remembered


def _digest(task: Task, record: Any) -> str:
    """The sha256 of a document's own question and answers, without few-shot examples and chat template."""
    has_choices = task.get_config("doc_to_choice") is not None
    answers = sorted(map(str, task.doc_to_choice(record))) if has_choices else [str(task.doc_to_target(record))]
    return hashlib.sha256(json.dumps([_question(task, record), *answers]).encode()).hexdigest()


def _question(task: Task, record: Any) -> str:
    """A document's own question, without few-shot examples and chat template."""
    text = task.doc_to_text(record)
    # Where the choices are contexts, the text is the right one's number, and the target follows all of them.
    return str(task.doc_to_target(record) if isinstance(text, int) else text)


def document_texts(specs: Sequence[TaskSpec], include: Path | None) -> dict[str, list[str]]:
    """Task -> the text of each document, by which it is known in other texts: its question, and where that is short
    the right answers behind it.

    Raises:
        ConfigError: as `build_tasks`.
    """
    with quiet():
        _, built = build_tasks(specs, include, None)
    found = {}
    for name, one in built.items():
        rows = [(_question(one.task, document.record), document.record) for document in one.documents]
        found[name] = [
            question if len(question) >= _TELLING else " ".join([question, *_answers(one.task, record)])
            for question, record in rows
        ]
    return found


_TELLING = 8  # characters of a question by which a document is known
