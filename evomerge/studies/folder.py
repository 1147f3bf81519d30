"""What lies in a study's folder, by name."""

from __future__ import annotations

EXPERIMENT, JOURNAL, DOCUMENTS, TABLES = "experiment.yaml", "journal.log", "documents", "thresholds"


ANSWERS, DELTAS = "answers", "deltas"


DATABASE, STORAGE_NAME = "journal.db", "storage_name"


IN_FILE, IN_SQLITE, SQLITE_URL = "journal", "sqlite", "sqlite:///"  # kinds of `storage`
