"""Which candidates are evaluated, on which documents. Knows no model: a host evaluates."""
