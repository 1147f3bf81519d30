"""A candidate, built in the live model and scored. Search and export use the same code."""
