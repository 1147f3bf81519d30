"""Candidates as Hugging Face folders, with their cards and recipes."""
