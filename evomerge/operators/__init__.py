"""Mutation operators, one a file: what acts on the live model after the merge and before the scoring.

A new file here is a new operator. Its module holds:

- a docstring: what it does and the paper it comes from;
- `Options`: a pydantic model of its options;
- `apply(model, options, generator) -> Callable[[], None]`: changes the live transformers model and returns what
  undoes the change exactly, so that the next merge finds the model as it was. `generator` is a torch.Generator
  seeded by the recipe: equal recipes give equal models.
"""
