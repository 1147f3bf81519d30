"""How anything is read and written: YAML, schemas, shipped definitions, whole files, hashes. Knows no model.

`writing` is the only home of writing aside and renaming, and of the lock of a study. All modules but
`hashed_tensors` import without torch.
"""
