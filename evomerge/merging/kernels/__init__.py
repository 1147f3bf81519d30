"""The passes that merge methods run in, and the tables that they look up. Knows no file and no method by name."""
