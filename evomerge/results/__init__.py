"""What came of a study: certificates, fronts, warnings, tables and exports.

- `certificate.py`, `paired_test.py`, `truncation.py`: whether a winner's gain is real;
- `choosing.py`, `fronts.py`, `hypervolume.py`: which trial to take, with one objective or several;
- `warnings.py`, `end_of_search.py`, `idle_genes.py`, `generations.py`: what may be wrong with a search;
- `summary.py`, `tables.py`, `live.py`: what a person sees, as plain values, as tables and while a study runs;
- `exporting/`: models as Hugging Face folders.
"""
