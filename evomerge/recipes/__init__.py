"""What is built: the complete, hashed description of a candidate, and mergekit's configurations of like meaning.

`recipe` is the description itself, `canonical` completes and sorts it, `files` reads and writes it as YAML, and
`parameters` says what a parameter of a merge method is. All modules import without torch.
"""
