"""A search on models: the experiment, its folder and log, and its course from plan to second phase.

- `experiment.py`, `storage.py`: the experiment file;
- `plan.py`, `warm_start.py`, `check.py`: how an experiment is laid over its models, and checked;
- `folder.py`, `life.py`: the names of a study's files, and how its folder begins and ends;
- `trials.py`, `journal.py`, `database.py`, `optuna_log.py`, `log.py`, `scores.py`: finished trials, and how
  they are kept;
- `study.py`, `evaluator.py`, `observer.py`: the search under way;
- `second_phase.py`, `training.py`: the training of the best after the search;
- `candidates/`, `workers/`: how a candidate is built and scored, and by which processes.
"""
