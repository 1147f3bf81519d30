"""Models as Hugging Face folders, each with its model card and its recipe.

- `folder.py`: builds a model, writes its folder, and checks it;
- `contents.py`, `model_card.py`: what the folder holds;
- `comparing.py`: whether a written folder loads as the model that was built;
- `recipe_files.py`: recipes and mergekit configurations, read back for building;
- `several_merges.py`: files of several mergekit merges;
- `one_model.py`: an operator on one model, without a search;
- `next_round.py`: a winner as an expert of the next study.
"""
