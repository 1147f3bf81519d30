"""How anything is read and written: YAML, schemas, shipped files, whole writes, hashes. Knows no model."""
