"""Tree masks, written out."""

import torch

from evomerge.scoring.forward.masks import TreeMasks


def test_a_mask_shows_each_token_its_path_and_its_ancestors_within_the_window() -> None:
    ends = torch.tensor([[5, 3, 3, 5, 5]])
    depths = torch.tensor([[2, 3, 4, 3, 4]])
    masks = TreeMasks({"full_attention": None, "sliding_attention": 3}, torch.float32)
    found = {kind: (mask[0, 0] == 0).int().tolist() for kind, mask in masks.of_batch(ends, depths, 2).items()}
    assert found["full_attention"] == [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1, 1],
    ]
    assert found["sliding_attention"] == [
        [1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 1, 1],
    ]


def test_a_step_shows_each_answer_its_prompt_and_itself_within_the_window() -> None:
    """Prompts of 1 and 3 tokens in 3 columns, and one token of each answer besides the new one."""
    masks = TreeMasks({"full_attention": None, "sliding_attention": 3}, torch.float32)
    made = masks.of_step(torch.tensor([1, 3]), columns=3, step=1)
    seen = {kind: (mask[:, 0, 0] == 0).int().tolist() for kind, mask in made.items()}
    assert seen["full_attention"] == [[1, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert seen["sliding_attention"] == [[1, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


def test_a_model_of_one_kind_of_layer_takes_one_mask() -> None:
    mask = TreeMasks({"": None}, torch.float32).of_step(torch.tensor([2]), columns=2, step=0)
    assert mask.shape == (1, 1, 1, 3)
