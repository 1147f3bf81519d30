"""Tiny random models, a tiny tokenizer, and local tasks for the scoring tests."""

import os
from pathlib import Path

import lm_eval.evaluator
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from evomerge.scoring.quiet import quiet

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

TASKS = Path(__file__).parent / "tasks"
VOCABULARY = 400
MAX_LENGTH = 160
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "The red cat and the green dog walk on the road to the yellow horse.",
    "Question: How many legs has the elephant number 3? A. blue B. grey C. red D. green Answer: A",
    "Q: 20 wings and 21 wings is A: 41 the crocodile likes the bee very much in the end",
]


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


_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH}
_WINDOW = {"head_dim": 8, "sliding_window": 16}

CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "qwen2": lambda: Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(
        **_GPT2, **{k: _SIZES[k] for k in _SIZES if k.endswith(("_id", "_range", "vocab_size"))}
    ),
    "gemma2": lambda: Gemma2Config(**_SIZES, **_WINDOW, final_logit_softcapping=3.0),
    "gemma3": lambda: Gemma3TextConfig(**_SIZES, **_WINDOW),
    "cohere": lambda: CohereConfig(**_SIZES, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**_SIZES, logits_scaling=4.0),
}


def make_tiny_model(name: str, seed: int = 0):
    """A random float32 model of a family; the seed decides its weights."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).eval()


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
def scoring_model():
    """Makes a tiny random model: (family, seed) -> model."""
    return make_tiny_model


@pytest.fixture(scope="session")
def scoring_stock():
    """Runs stock lm-eval one request at a time: (model, tokenizer, tasks, **keywords) -> its results.

    Only its description of this machine is left out: it takes as long as all the rest.
    """
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _: None)

    def run(model, tokenizer, tasks, **keywords):
        with quiet():
            return lm_eval.simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
                tasks=list(tasks),
                task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
                bootstrap_iters=0,
                **keywords,
            )

    yield run
    monkeypatch.undo()
