"""Which candidates are evaluated, and on which documents.

A search knows no model. It asks a sampler for genomes, hands them to a host that evaluates them and keeps the log,
and tells the sampler what they came to. A study is such a host; `maximize` brings another, which lives in memory.

- `search.py`, `asynchronous.py`: the two courses of a search, by generations and without waiting;
- `host.py`, `lines.py`: what a search asks of its host, and the lines of the log;
- `documents.py`, `batches.py`, `reliability.py`: which documents a generation is scored on, and how many;
- `objective.py`: the value of a candidate;
- `lessons.py`, `incumbent.py`: what the sampler is told, and which candidate is held to be best;
- `maximize.py`: a search for a fitness of one's own;
- `spaces/`, `samplers/`: what may vary, and who proposes.
"""
