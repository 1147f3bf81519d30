"""What lies in a study's folder, by name.

STUDY/experiment.yaml   the experiment as run, complete in itself
STUDY/journal.log       finished trials, one line each, appended: an Optuna journal; with `storage: sqlite` it is
                        STUDY/journal.db, an Optuna database
STUDY/storage_name      the study's name in a database outside of STUDY, where its trials then are
STUDY/ended.json        says that the budget is spent, and by how many trials
STUDY/certificate.json  what `evomerge certify` found
STUDY/documents/        per-document results, one file a recipe
STUDY/answers/          what candidates answered, one file a recipe: see `scoring.answers`
STUDY/thresholds/       tables that merge methods look up; answers of the models that are learned from
STUDY/deltas/           what training operators left, one file a candidate
"""

from __future__ import annotations

EXPERIMENT, JOURNAL, DATABASE, STORAGE_NAME = "experiment.yaml", "journal.log", "journal.db", "storage_name"
ENDED, CERTIFICATE = "ended.json", "certificate.json"
DOCUMENTS, ANSWERS, TABLES, DELTAS = "documents", "answers", "thresholds", "deltas"

IN_FILE, IN_SQLITE, SQLITE_URL = "journal", "sqlite", "sqlite:///"  # kinds of `storage` in an experiment
