"""How a candidate is built in the live model and scored. Search and export use the same code.

- `setup.py`: what a workbench is made from; it travels to the workers;
- `workbench.py`: the live model, and the tasks that score it;
- `operating.py`: the operators of a recipe, as far as they need no live model;
- `score.py`: what is known of a scored candidate;
- `score_model.py`: any model folder, scored in the same way.
"""
