"""The workloads of the scoring benchmark: local lm-eval tasks, made from a seed.

Each is a YAML file and two JSON files: documents, and examples for few-shot prompts. Prompts are rendered by
Jinja templates as those of ARC and MMLU are. English is for tokenizers of English; the demo's language for the
tokenizer of the demo's models, which knows single letters, digits and three skills.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge.scoring.documents import skills

_EXAMPLES = 24


def _words(text: str) -> list[str]:
    return text.split()


_ADJECTIVES = _words(
    "old young small large quiet green bright heavy warm cold narrow wide clever gentle hungry tired broken golden "
    "wooden early distant simple careful strange famous empty silver rough steady proud"
)
_NOUNS = _words(
    "river boat farmer teacher bridge garden horse window letter market forest engine doctor child village stone "
    "table road island kitchen singer painter mountain train clock bird fisherman captain lamp book queen soldier "
    "baker church school field wagon rope basket tower"
)
_VERBS = _words(
    "carried found watched painted followed remembered repaired opened crossed visited sold heard lifted answered "
    "counted cleaned pushed passed moved closed noticed admired covered reached"
)
_PLACES = _words("near behind beside above under before after beyond inside around")


class Language:
    """How questions are written.

    Attributes:
        start, end: the text before and after a question.
        delimiter: the text between prompt and answer.
        shot: the text between examples.
        stop: the text that ends a generated answer.
        letters: the names of listed options.
    """

    start: str
    end: str
    delimiter: str
    shot: str
    stop: str
    letters: str

    def fact(self, rng: random.Random) -> str:
        """A statement of about 11 tokens."""
        raise NotImplementedError

    def phrase(self, rng: random.Random, words: int) -> str:
        """An answer of about as many tokens as words."""
        raise NotImplementedError

    def listed(self, letter: str) -> str:
        """The text before an option that a prompt lists."""
        raise NotImplementedError


class English(Language):
    """Sentences from a list of common words."""

    start, end, delimiter, shot, stop, letters = "Question: ", "\nAnswer:", " ", "\n\n", "\n", "ABCD"

    def fact(self, rng: random.Random) -> str:
        first, second, third = rng.sample(_NOUNS, 3)
        one, other = rng.sample(_ADJECTIVES, 2)
        verb, place = rng.choice(_VERBS), rng.choice(_PLACES)
        return f"The {one} {first} {verb} the {other} {second} {place} the {third}. "

    def phrase(self, rng: random.Random, words: int) -> str:
        return " ".join([*rng.sample(_ADJECTIVES, words - 1), rng.choice(_NOUNS)])

    def listed(self, letter: str) -> str:
        return f"\n{letter}. "


class Demo(Language):
    """Calls of the demo's skills, with answers that mean nothing."""

    start, end, delimiter, shot, stop, letters = "", ")=", "", ")=", ")=", "0123"

    def fact(self, rng: random.Random) -> str:
        skill = rng.choice(list(skills.SKILLS))
        return f"{skill}({self.phrase(rng, 5)})={rng.randrange(1000, 10000)}"

    def phrase(self, rng: random.Random, words: int) -> str:
        return "".join(rng.choices(skills.LETTERS, k=words))

    def listed(self, letter: str) -> str:
        return letter


@dataclass(frozen=True)
class Workload:
    """One task.

    Attributes:
        kind: choice, letters (one-token answers that the prompt lists), generate or rolling.
        sampler: draws the examples: first_n (the same for all documents) or default (others for each document).
        facts: statements per question.
        words: the least and the greatest length of an answer.
        documents: how many there are for the tiny model and for large ones.
        wanted: how many times faster than lm-eval ours should be, at least; None where there is no aim.
    """

    name: str
    kind: str = "choice"
    shots: int = 0
    sampler: str = "first_n"
    choices: int = 4
    facts: int = 4
    words: tuple[int, int] = (2, 5)
    documents: tuple[int, int] = (200, 40)
    wanted: float | None = None


WORKLOADS = (
    Workload("choice4_0shot", documents=(200, 64), wanted=2.5),
    Workload("letters4_0shot", kind="letters", documents=(200, 64)),
    Workload("choice4_5shot", shots=5, wanted=12),
    Workload("choice4_5shot_random", shots=5, sampler="default"),
    Workload("choice10_10shot", shots=10, choices=10, facts=2, words=(3, 6), documents=(100, 32), wanted=40),
    Workload("generate_5shot", kind="generate", shots=5, facts=2, words=(1, 2), documents=(200, 32)),
    Workload("perplexity", kind="rolling", facts=20, documents=(100, 16)),
)


def write_task(workload: Workload, language: Language, folder: Path, count: int, seed: int) -> None:
    """Writes the task of a workload, with `count` documents, into a folder."""
    files = {}
    for split, size in (("test", count), ("train", _EXAMPLES)):
        rng = random.Random(f"{seed} {workload.name} {split}")
        path = folder / f"{workload.name}-{split}.jsonl"
        rows = (json.dumps(_document(workload, language, rng)) for _ in range(size))
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        files[split] = str(path)
    task = {
        "task": workload.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": workload.shots,
        "fewshot_config": {"sampler": workload.sampler},
        "fewshot_delimiter": language.shot,
        "target_delimiter": language.delimiter,
        **_form(workload, language),
    }
    (folder / f"{workload.name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def _document(workload: Workload, language: Language, rng: random.Random) -> dict[str, Any]:
    question = "".join(language.fact(rng) for _ in range(workload.facts)).strip()
    choices: dict[str, None] = {}
    while len(choices) < workload.choices:
        choices[language.phrase(rng, rng.randint(*workload.words))] = None
    return {"question": question, "choices": list(choices), "gold": rng.randrange(workload.choices)}


def _form(workload: Workload, language: Language) -> dict[str, Any]:
    """The part of a task's YAML that depends on its kind: prompts, answers, metrics."""
    prompt = language.start + "{{question}}" + language.end
    if workload.kind == "rolling":
        return {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [
                {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
            ],
        }
    if workload.kind == "generate":
        return {
            "output_type": "generate_until",
            "doc_to_text": prompt,
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": [language.stop], "do_sample": False, "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    choices: Any = "choices"
    if workload.kind == "letters":
        choices = list(language.letters)
        options = [f"{language.listed(letter)}{{{{choices[{at}]}}}}" for at, letter in enumerate(choices)]
        prompt = language.start + "{{question}}" + "".join(options) + language.end
    return {
        "output_type": "multiple_choice",
        "doc_to_text": prompt,
        "doc_to_choice": choices,
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
