"""Tiny random models, a tiny tokenizer, and local tasks for the scoring tests."""

import os
from pathlib import Path

import lm_eval.evaluator
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from evomerge.scoring.encoder import Encoder
from evomerge.scoring.engine import Engine
from evomerge.scoring.forward.requests import LikelihoodRequest
from evomerge.scoring.quiet import quiet
from evomerge.scoring.reports import TaskSpec
from evomerge.scoring.scorer import Scorer
from tests.helpers.builtin_tasks import write_builtin_tasks
from tests.helpers.tiny_models import VOCABULARY, make_tiny_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

TASKS = Path(__file__).parent / "tasks"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "The red cat and the green dog walk on the road to the yellow horse.",
    "Question: How many legs has the elephant number 3? A. blue B. grey C. red D. green Answer: A",
    "Q: 20 wings and 21 wings is A: 41 the crocodile likes the bee very much in the end",
]
GENERATION_TASK = """
task: {name}
custom_dataset: !function data.questions
output_type: generate_until
test_split: test
doc_to_text: "Q: {{{{text}}}}\\nA:"
doc_to_target: answer
repeats: {repeats}
generation_kwargs: {{until: {until}, max_gen_toks: {length}{more}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def _tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>" if bos else None, eos_token="</s>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="session", autouse=True)
def scoring_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scoring_tokenizers():
    """Whether it puts a beginning-of-text token before a prompt -> tokenizer."""
    return {bos: _tokenizer(bos=bos) for bos in (True, False)}


@pytest.fixture(scope="session")
def scoring_tokenizer(scoring_tokenizers):
    return scoring_tokenizers[True]


@pytest.fixture(scope="session")
def scoring_tasks():
    """Folder of local lm-eval tasks."""
    return TASKS


@pytest.fixture(scope="session")
def scoring_builtin_tasks(tmp_path_factory):
    """Folder of lm-eval's own tasks with made-up documents."""
    return write_builtin_tasks(tmp_path_factory.mktemp("builtin"))


@pytest.fixture(scope="session")
def scoring_model():
    """Makes a tiny random model: (family, seed) -> model."""
    return make_tiny_model


@pytest.fixture(scope="session")
def scoring_stock():
    """Runs stock lm-eval one request at a time: (model, tokenizer, tasks, **keywords) -> its results.

    include: the folder of the tasks. Only lm-eval's description of this machine is left out: it takes as long as
    all the rest.
    """
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _: None)

    def run(model, tokenizer, tasks, include=TASKS, **keywords):
        with quiet():
            return lm_eval.simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
                tasks=list(tasks),
                task_manager=TaskManager(include_path=str(include), include_defaults=False),
                bootstrap_iters=0,
                **keywords,
            )

    yield run
    monkeypatch.undo()


@pytest.fixture(scope="session")
def scoring_engine(scoring_tokenizer):
    """Makes an engine: (model, (row, answer) pairs of token ids, generation requests, tokens per batch)."""

    def make(model, pairs=(), generations=(), batch_tokens=64):
        requests = [LikelihoodRequest(tuple(row), tuple(answer), False) for row, answer in pairs]
        with quiet():
            return Engine(model, Encoder(model, scoring_tokenizer), requests, list(generations), batch_tokens)

    return make


@pytest.fixture(scope="session")
def scoring_few_shot():
    """Makes (row, answer) pairs of token ids: (documents, choices, seed) -> pairs, an answer's last token left out.

    All documents share a beginning longer than a batch of 32 tokens, and than the tiny models' windows.
    """

    def make(documents=5, choices=3, seed=0):
        draw = torch.Generator().manual_seed(seed)

        def ids(low, high=None):
            count = low if high is None else int(torch.randint(low, high + 1, (), generator=draw))
            return torch.randint(2, VOCABULARY, (count,), generator=draw).tolist()

        beginning, pairs = ids(44), []
        for _ in range(documents):
            context = beginning + ids(2, 12)
            answers = [ids(1, 5) for _ in range(choices)]
            answers[-1] = answers[0] + ids(2)
            pairs += [(context + answer[:-1], answer) for answer in answers]
        return pairs

    return make


@pytest.fixture
def scoring_make_generation(scoring_model, scoring_tokenizer, scoring_tasks, tmp_path):
    """Makes a scorer of one generation task with the given stop strings and length."""
    (tmp_path / "data.py").write_text((scoring_tasks / "data.py").read_text())

    def make(until="[]", length=12, more="", repeats=1, model=None, **keywords):
        text = GENERATION_TASK.format(name="made", until=until, length=length, more=more, repeats=repeats)
        (tmp_path / "made.yaml").write_text(text)
        model = model or scoring_model("llama")
        return Scorer(model, scoring_tokenizer, [TaskSpec("made")], include=tmp_path, **keywords)

    return make
