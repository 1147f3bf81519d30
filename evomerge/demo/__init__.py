"""The demo's material: small skills on strings and numbers, and a tiny family of models trained on them.

- `skills.py`: the skills, their training examples and their multiple-choice documents, pure functions of seeds;
- `family.py`: trains a base and one expert per skill from scratch, in about a minute on a CPU;
- `experiment.py`: writes the experiment file that a first-time reader starts from.

Nothing here is needed to merge or to search. The shipped fitness `tiny_skills` reads its documents from here.
"""
