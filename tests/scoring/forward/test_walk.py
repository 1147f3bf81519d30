"""Batches of a plan through a model."""

import torch

from evomerge.scoring.forward import admission
from evomerge.scoring.forward.costs import Cost
from evomerge.scoring.forward.prefixes import plan_passes
from evomerge.scoring.forward.walk import Step, Walk


def test_a_walk_may_leave_out_batches_that_others_do_not_stand_on(scoring_model, scoring_few_shot):
    model = scoring_model("llama")
    rows = [torch.tensor(row).numpy() for row in dict.fromkeys(tuple(row) for row, _ in scoring_few_shot(12))]
    made = plan_passes(rows, [1] * len(rows), 32, 256, Cost(0.003, 2.0))
    masks = admission.find_masks(model, 100)
    number, line, column = made.places[-1][-1].tolist()
    under = made.batches[number].under
    assert set(range(number)) - set(under)
    walk = Walk(model, masks)
    with torch.no_grad():
        for at in (*under, number):
            hidden, _ = walk.forward(Step.of(made.batches[at], "cpu"))
        wanted = model.model(input_ids=torch.tensor(rows[-1])[None])[0][0, -1]
    assert walk.tokens < made.tokens
    torch.testing.assert_close(hidden[line, column], wanted, rtol=0, atol=1e-4)
