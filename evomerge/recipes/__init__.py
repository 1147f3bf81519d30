"""What is built: the complete, hashed description of a candidate, and mergekit's configurations as such."""
