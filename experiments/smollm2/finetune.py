"""Fine-tunes the base on one skill: all layers and norms, tied embedding frozen, loss on the answer alone.

Attention runs in transformers' plain form (`eager`): on CPU the backward pass of the fused one takes twice as
long on sequences as short as these. Weights and optimizer are float32, matrix products bfloat16; the folder is
saved in bfloat16. Sequences are padded on the right, so that no mask is needed: the answer is read at the last
real token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from files import say
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

Example = tuple[list[int], int]  # prompt tokens, answer token

_PAD_TO = 4  # lengths are rounded up: every new shape costs a set-up


@dataclass(frozen=True)
class Training:
    """How an expert is trained."""

    steps: int
    batch: int
    rate: float = 1e-4
    warm_up: int = 10
    clip: float = 1.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """A linear warm-up, then a linear decay to a tenth."""
        done = max(0, step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * min((step + 1) / self.warm_up, 1 - 0.9 * done)


def finetune(base: Path, documents: Path, folder: Path, training: Training) -> dict[str, Any]:
    """Train the model in `base` on a file of documents, and save it with its tokenizer into `folder`.

    Returns:
        The loss and accuracy (over the whole vocabulary) of the last tenth of the steps.
    """
    torch.manual_seed(training.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model.get_input_embeddings().weight.requires_grad_(False)
    model.train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=training.rate, weight_decay=0.0, fused=True)
    batches = _batches(_tokenized(tokenizer, documents), training)
    history = []
    for step, (tokens, last, answers) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[torch.arange(len(last)), last]).float()
        loss = F.cross_entropy(logits, answers)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        history.append((loss.item(), (logits.argmax(1) == answers).float().mean().item()))
        if (step + 1) % 10 == 0:
            loss_now, right = _mean(history[-10:])
            say(f"{folder.stem}: step {step + 1}/{training.steps}  loss {loss_now:.3f}  right {right:.2f}")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loss_now, right = _mean(history[-max(1, training.steps // 10) :])
    return {"final_loss": loss_now, "final_accuracy": right, "threads": torch.get_num_threads()}


def _mean(history: list[tuple[float, float]]) -> tuple[float, float]:
    losses, rights = zip(*history, strict=True)
    return sum(losses) / len(history), sum(rights) / len(history)


def _tokenized(tokenizer: Any, documents: Path) -> list[Example]:
    """Prompt tokens and the one answer token of each document."""
    examples = []
    for line in documents.read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        *prompt, answer = tokenizer.encode(document["prompt"] + document["choices"][document["gold"]])
        examples.append((prompt, answer))
    return examples


def _batches(examples: list[Example], training: Training) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tokens (batch, length), index of the last prompt token, answer token; epoch after epoch, shuffled."""
    draw = random.Random(training.seed)
    queue: list[Example] = []
    for _ in range(training.steps):
        if len(queue) < training.batch:
            queue = queue + draw.sample(examples, len(examples))
        taken, queue = queue[: training.batch], queue[training.batch :]
        lengths = [len(prompt) for prompt, _ in taken]
        width = -(-max(lengths) // _PAD_TO) * _PAD_TO
        rows = [prompt + [0] * (width - len(prompt)) for prompt, _ in taken]
        answers = [answer for _, answer in taken]
        yield torch.tensor(rows), torch.tensor(lengths) - 1, torch.tensor(answers)
