"""A model that was taken apart and put together again must still speak English."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from files import PreparationError, say
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

HIGHEST_PERPLEXITY = 40.0
_TEXT = """The harbour wakes before the town does. By five in the morning the first boats are already coming
in, and the gulls follow them because they know that some of the catch will be thrown back into the water. Men
and women in rubber boots carry the boxes across the wet stones to the hall, where the buyers wait with cold
hands and small notebooks. Nobody speaks much. The price of a box depends on the weather of the past week, on the
size of the fish, and on how many restaurants are open at this time of the year. An hour later everything has
been sold, the floor has been washed, and the lorries are on their way to the city. Then the bakery opens its
doors, and the people who have worked through the night sit down to drink coffee and to talk about their
children."""
_QUESTION, _ANSWER = "The capital of France is", "Paris"


def check_english(folder: Path) -> dict[str, float | str]:
    """Measure the perplexity of a short text, and continue a sentence greedily.

    Raises:
        PreparationError: the perplexity is above `HIGHEST_PERPLEXITY`, or the capital of France is not Paris.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        tokens = torch.tensor([tokenizer.encode(" ".join(_TEXT.split()))])
        logits = model(tokens).logits[0, :-1]
        perplexity = math.exp(F.cross_entropy(logits, tokens[0, 1:]).item())
        question = torch.tensor([tokenizer.encode(_QUESTION)])
        mask = torch.ones_like(question)
        output = model.generate(question, attention_mask=mask, max_new_tokens=12, do_sample=False)
    reply = tokenizer.decode(output[0, question.shape[1] :])
    say(f"English: perplexity {perplexity:.2f} (at most {HIGHEST_PERPLEXITY:g}); {_QUESTION!r} ->{reply!r}")
    if perplexity > HIGHEST_PERPLEXITY or _ANSWER not in reply:
        raise PreparationError(
            f"{folder}: the model does not speak English: perplexity {perplexity:.1f} of a text "
            f"where at most {HIGHEST_PERPLEXITY:g} is expected, and {_QUESTION!r} continues as {reply!r}"
        )
    return {"perplexity": perplexity, "reply": reply}
