"""lm-eval's own tasks on made-up documents: its YAML files, with only the data replaced by local JSON lines."""

import json
from pathlib import Path

import lm_eval.tasks
import yaml

ANIMALS = ["cat", "dog", "horse", "elephant", "crocodile", "bee"]
COLOURS = ["red", "green", "blue", "yellow", "grey"]
LETTERS = "ABCD"


def _pair(i):
    return COLOURS[i % 5], ANIMALS[(2 * i + i // 6) % 6]


def _arc(i):
    colour, animal = _pair(i)
    texts = [f"{colour} {animal}", animal, f"the {animal} on the {colour} road", "bee"][: 3 + i % 2]
    choices = {"text": texts, "label": list(LETTERS[: len(texts)])}
    return {"question": f"What walks at number {i}?", "choices": choices, "answerKey": LETTERS[i % len(texts)]}


def _hellaswag(i):
    colour, animal = _pair(i)
    return {
        "activity_label": f"Walking a {animal}",
        "ctx_a": f"The {animal} [step] walks on the  road.",
        "ctx_b": f"the {colour} dog",
        "endings": [f"likes the {ANIMALS[k]} very much [title] in the end{'.' * k}" for k in range(4)],
        "label": str((i + 1) % 4),
    }


def _mmlu(i):
    colour, animal = _pair(i)
    choices = [f"{i + k} {colour} wings" for k in range(4)]
    return {"question": f" How many wings has the {animal}? ", "choices": choices, "answer": (3 * i) % 4}


def _boolq(i):
    colour, animal = _pair(i)
    return {"passage": f"The {animal} is {colour}.", "question": f"is the {animal} red", "label": int(i % 3 == 0)}


def _winogrande(i):
    colour, animal = _pair(i)
    sentence = f"The {animal} saw the {ANIMALS[(i + 1) % 6]} because the _ was {colour} and {i} legs high."
    return {"sentence": sentence, "option1": animal, "option2": ANIMALS[(i + 1) % 6], "answer": str(1 + i % 2)}


def _mrpc(i):
    colour, animal = _pair(i)
    same = {"sentence1": f"The {animal} is {colour}.", "sentence2": f"{colour} is the {animal} number {i}."}
    return {**same, "label": i % 2}


def _cola(i):
    colour, animal = _pair(i)
    return {"sentence": f"The {colour} {animal} walk {i} the.", "label": int(i % 3 > 0)}


def _lambada(i):
    colour, animal = _pair(i)
    return {"text": f"The {colour} dog and the {animal} walk on the road number {i} to the {animal}"}


def _gsm8k(i):
    question = f"A bee has {i} wings and {i + 2} legs. How many?"
    return {"question": question, "answer": f"It has {i} + {i + 2} of these.\n#### {2 * i + 2}"}


def _wikitext(i):
    """Growing pages: from a few words to several windows; one has no text at all."""
    colour, animal = _pair(i)
    sentence = f" = = The {colour} {animal} = = \n The {animal} 's road , {i} @,@ 000 legs long ( very grey ) . "
    return {"page": sentence * (i * i)}


# Task -> its file, the splits it reads with their numbers of documents, a document by its number, and its changes.
BUILT_IN = {
    "arc_easy": ("arc/arc_easy.yaml", {"test": 6, "train": 5}, _arc, {}),
    "hellaswag": ("hellaswag/hellaswag.yaml", {"validation": 6, "train": 5}, _hellaswag, {}),
    "mmlu_anatomy": ("mmlu/default/mmlu_anatomy.yaml", {"test": 8, "dev": 5}, _mmlu, {}),
    "boolq": ("super_glue/boolq/default.yaml", {"validation": 6, "train": 5}, _boolq, {}),
    "winogrande": ("winogrande/default.yaml", {"validation": 6, "train": 7}, _winogrande, {}),
    "mrpc": ("glue/mrpc/default.yaml", {"validation": 8, "train": 5}, _mrpc, {}),
    "cola": ("glue/cola/default.yaml", {"validation": 8, "train": 5}, _cola, {}),
    "lambada_openai": ("lambada/lambada_openai.yaml", {"test": 8}, _lambada, {}),
    "wikitext": ("wikitext/wikitext.yaml", {"test": 6, "train": 1}, _wikitext, {}),
    "gsm8k": (
        "gsm8k/gsm8k.yaml",
        {"test": 5, "train": 6},
        _gsm8k,
        {
            # lm-eval's 256 tokens are more than the tiny models' maximum length; 5 examples do not fit, 1 does.
            "generation_kwargs": {"until": ["Question:", "</s>", " the"], "do_sample": False, "max_gen_toks": 24},
            "num_fewshot": None,
        },
    ),
}


def write_builtin_tasks(folder: Path) -> Path:
    """A folder of tasks to include: each reads lm-eval's own YAML and documents beside it."""
    root = Path(lm_eval.tasks.__file__).parent
    for name, (source, splits, document, changes) in BUILT_IN.items():
        files = {}
        for at, (split, count) in enumerate(splits.items()):
            path = folder / f"{name}_{split}.jsonl"
            rows = [document(number) for number in range(20 * at, 20 * at + count)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(path)
        content = {
            "include": str(root / source),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
            **changes,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder
