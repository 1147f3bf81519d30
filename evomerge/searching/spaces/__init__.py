"""What is searched: genes, the space that they span, and how a genome decodes to a recipe."""
