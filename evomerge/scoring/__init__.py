"""lm-eval's numbers for a live model: tasks are built and tokenized once, then scored as often as asked.

The one place of evomerge that imports lm_eval. `tasks` loads and prompts lm-eval's own Task objects, `encoder`
tokenizes with lm-eval's own code, `packed` forwards log-likelihood requests, `generate` answers generation
requests, `head` gives float32 log-probabilities at scored positions only, `metrics` turns answers into
per-document metrics, `smooth` has those to climb, and `scorer` holds it together. Nothing derived from weights
outlives a call.
"""

from __future__ import annotations

from evomerge.scoring.scorer import Report, Scorer
from evomerge.scoring.tasks import TaskScore, TaskSpec, document_texts

__all__ = ["Report", "Scorer", "TaskScore", "TaskSpec", "document_texts"]
