"""What is searched: genes, the space that they span, and the recipe that a genome decodes to.

- `genes`: genes as files have them, and coordinates as a search has them;
- `space`, `faults`: the search space file, and what may be wrong with it;
- `coordinates`, `depth`, `gating`, `decoding`: the space laid over models, whose genomes decode to recipes;
- `known_points`: genomes that are looked at first;
- `operator_genes`: an experiment's operators, whose options may be genes.

Nothing here opens a model or imports a library that computes.
"""
