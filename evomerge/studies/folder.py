"""What lies in a study's folder, by name.

STUDY/experiment.yaml   the experiment as it was run, complete in itself
STUDY/journal.log       the finished trials, one appended line each: an Optuna journal; with `storage: sqlite` it is
                        STUDY/journal.db, an Optuna database
STUDY/storage_name      the name of the study in a database outside of STUDY, which then holds its trials
STUDY/ended.json        says that the budget is spent, and after how many trials
STUDY/certificate.json  the result of `evomerge certify`
STUDY/documents/        the results on each document, a file for each recipe, see `studies.scores`
STUDY/answers/          the answers of candidates, a file for each recipe, see `scoring.answers`
STUDY/thresholds/       tables that merge methods look up, and the answers of teachers to training texts
STUDY/deltas/           the tensors that training operators left, a file for each candidate and operator
"""

from __future__ import annotations

EXPERIMENT, JOURNAL, DATABASE, STORAGE_NAME = "experiment.yaml", "journal.log", "journal.db", "storage_name"
ENDED, CERTIFICATE = "ended.json", "certificate.json"
DOCUMENTS, ANSWERS, TABLES, DELTAS = "documents", "answers", "thresholds", "deltas"
