"""Small data sets for the scoring tests, made on the spot."""

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

ANIMALS = ["cat", "dog", "horse", "elephant", "crocodile", "bee"]
COLOURS = ["red", "green", "blue", "yellow", "grey"]


def _splits(rows, shots):
    return datasets.DatasetDict(
        {"test": datasets.Dataset.from_list(rows), "train": datasets.Dataset.from_list(shots)}
    )


def letters(**_):
    rows = [
        {
            "question": f"How many legs has the {ANIMALS[i % 6]} number {i}?",
            "options": [COLOURS[(i + k) % 5] for k in range(4)],
            "label": (3 * i) % 4,
        }
        for i in range(12)
    ]
    return _splits(rows, rows[:6])


def prefixes(**_):
    rows = [
        {
            "text": f"The {COLOURS[i % 5]} {ANIMALS[i % 6]} walks ",
            "choices": ["on", "on the", "on the road", f"on the road to the {ANIMALS[(i + 1) % 6]}"][: 3 + i % 2],
            "label": i % 3,
        }
        for i in range(10)
    ]
    return _splits(rows, rows)


def targets(**_):
    rows = [
        {"text": f"The {COLOURS[i % 5]} {ANIMALS[i % 6]} likes the", "target": f" {ANIMALS[(i + 2) % 6]} very much"}
        for i in range(9)
    ]
    return _splits(rows, rows)


def questions(**_):
    rows = [{"text": f"{i} legs and {i + 1} legs is", "answer": str(2 * i + 1)} for i in range(7)]
    shots = [{"text": f"{i} wings and {i} wings is", "answer": str(2 * i)} for i in range(20, 26)]
    return _splits(rows, shots)


def gaps(**_):
    rows = [
        {"choices": [f"The {a} saw the {b} and the {a}", f"The {a} saw the {b} and the {b}"], "label": i % 2}
        for i, (a, b) in enumerate(zip(ANIMALS, COLOURS, strict=False))
    ]
    return _splits(rows, rows)


def long_contexts(**_):
    rows = [
        {"text": " ".join(f"the {COLOURS[(i * k) % 5]} {ANIMALS[(i + k) % 6]}" for k in range(60)), "label": i % 2}
        for i in range(4)
    ]
    return _splits(rows, rows)


def several_labels(**_):
    rows = [{"text": f"Number {i} is", "label": [i % 3, (i + 1) % 3]} for i in range(6)]
    return _splits(rows, rows)


def bad_labels(**_):
    rows = [{"text": f"Number {i} is", "label": 7 if i else 0} for i in range(3)]
    return _splits(rows, rows)


def inputs(**_):
    rows = [
        {"start": f"The {ANIMALS[i % 6]} is", "end": f"as the {ANIMALS[(i + 1 + i // 6) % 6]}", "label": i % 3}
        for i in range(8)
    ]
    return _splits(rows, rows[:5])


def pages(**_):
    """Texts of a word, of several windows, of nothing, and of letters of several bytes."""
    sentence = "The red cat and the grey dog walk on the road to the yellow horse.\n"
    texts = ["bee", sentence, "", sentence * 9, "Ä " * 120, sentence * 20]
    rows = [{"text": text} for text in texts]
    return _splits(rows, rows)


def several_answers(**_):
    rows = [{"text": f"{i} legs", "answers": ["bee", "", f"{i} bees", "bee"][: 1 + i % 4]} for i in range(6)]
    return _splits(rows, rows)


def fails(**_):
    raise FileNotFoundError("the data are gone")


def own_metric(doc, results):
    return {"words": 1 / 0, "known": 1}


def own_likelihood(doc, results):
    return {"loglikelihood": 7.0}


def sometimes(doc, results):
    found = {"words": len(results[0].split())}
    return {**found, "even": 1.0} if int(doc["answer"]) < 6 else found


class UnknownRequest(ConfigurableTask):  # type: ignore[misc]
    """Asks for what no model answers."""

    def __init__(self, **_):
        super().__init__(
            config={
                "task": "unknown_request",
                "custom_dataset": targets,
                "test_split": "test",
                "doc_to_text": "text",
                "doc_to_target": "target",
            }
        )

    def construct_requests(self, doc, ctx, **keywords):
        return Instance("draw", doc, (ctx,), 0, keywords["metadata"])
