"""What lm-eval renders of a document: its question and reference answers, each once; and a hash of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task

from evomerge.files.hashing import digest_of_json
from evomerge.scoring.lm_eval_parts import reference_continuation


def remember_renderings(task: Task, records: Sequence[Any]) -> None:
    """Lets a task render each document's text, target and choices once: they do not depend on the candidate."""
    if not isinstance(task, ConfigurableTask):
        return
    known = {id(record) for record in records}
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, name, _remembered(getattr(task, name), known))


def _remembered(render: Callable[..., Any], known: set[int]) -> Callable[..., Any]:
    """A method of a task that renders each record once. known: ids of the records that live as long as the task."""
    rendered: dict[int, Any] = {}

    def remembered(record: Any, *template: Any) -> Any:
        if template or id(record) not in known:
            return render(record, *template)
        if id(record) not in rendered:
            rendered[id(record)] = render(record)
        return rendered[id(record)]

    return remembered


def question(task: Task, record: Any) -> str:
    """A document's own question, without few-shot examples and chat template."""
    text = task.doc_to_text(record)
    # Where the choices are contexts, the text is the right one's number, and the target follows all of them.
    return str(task.doc_to_target(record) if isinstance(text, int) else text)


def digest(task: Task, record: Any) -> str:
    """The sha256 of a document's own question and answers, without few-shot examples and chat template."""
    has_choices = task.get_config("doc_to_choice") is not None
    answers = sorted(map(str, task.doc_to_choice(record))) if has_choices else [str(task.doc_to_target(record))]
    return digest_of_json([question(task, record), *answers])


def reference_answers(task: ConfigurableTask, record: Any) -> list[str]:
    """The different reference answers of a document that are not blank."""
    target = task.doc_to_target(record)
    choices = task.doc_to_choice(record) if task.config.doc_to_choice is not None else ()
    texts = [
        choices[one] if choices and isinstance(one, int) else one
        for one in (target if isinstance(target, list) else [target])
    ]
    written = (str(text) for text in texts if isinstance(text, str | int | float))
    return list(dict.fromkeys(text for text in written if text.strip()))


def reference_requests(task: Task, instances: Sequence[Instance], *, chat: bool) -> tuple[Instance, ...]:
    """The log-likelihood requests of a document's reference answers; none where it generates nothing.

    Args:
        instances: the document's requests.
        chat: whether its prompt is in a chat template.
    """
    first = instances[0]
    if first.request_type != "generate_until" or not isinstance(task, ConfigurableTask):
        return ()
    requests = []
    for at, answer in enumerate(reference_answers(task, first.doc)):
        arguments = (first.args[0], reference_continuation(task, first.doc, answer, chat=chat))
        requests.append(Instance("loglikelihood", first.doc, arguments, at, (first.task_name, first.doc_id, 1)))
    return tuple(requests)
