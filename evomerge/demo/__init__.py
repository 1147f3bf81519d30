"""The demo: a tiny family of models that are trained here, and a search for their best merge.

- `family.py`: trains a base and one expert per skill from scratch, in a minute or two on a CPU;
- `experiment.py`: writes the experiment file that a first-time reader starts from;
- `tour.py`: runs the demo from end to end.

The skills themselves, with their training examples and their documents, stand in `scoring.documents.skills`, where
the shipped fitness `tiny_skills` reads them too. Nothing here is needed to merge or to search.
"""
